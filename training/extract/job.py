"""Extracts over a whole file: one line `{"id", "of", "values", "by"}` for each input, in the same order.

An app's script calls it (`examples/beauty-finder/beauty.py extract`), it hands an `Extractor` to `training.batch`,
which keeps the file. Another prompt, schema, model or lexicon does not continue the file of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.batch.file import Entry
from training.batch.run import run_batch
from training.extract.ports import Extractor

FORMAT = 1


@dataclass(slots=True)
class Tally:
    """`before`: lines that earlier runs wrote. The others count this run: by whom, and asked again."""

    before: int = 0
    model: int = 0
    rules: int = 0
    asked_again: int = 0

    @property
    def done(self) -> int:
        return self.model + self.rules


class _Worker:
    def __init__(self, extractor: Extractor, tally: Tally) -> None:
        self._extractor, self._tally = extractor, tally
        identity = dict(extractor.identity)
        fingerprint = extractor.form.fingerprint(identity)
        self.about = {"format": FORMAT, "form": extractor.form.name, "by": identity, "fingerprint": fingerprint}
        self.at_once = extractor.at_once

    async def work(self, entry: Entry) -> Mapping[str, Any]:
        extraction = await self._extractor.extract(entry.content)
        self._tally.asked_again += max(0, extraction.asked - 1)
        return {"values": extraction.values, "by": extraction.by}


def run_job(
    inputs: Iterable[Entry],
    out: Path,
    extractor: Extractor,
    restart: bool = False,
    progress: Callable[[int, Tally], None] | None = None,
) -> Tally:
    """As `extract_all`, from where no event loop runs."""
    return asyncio.run(extract_all(inputs, out, extractor, restart, progress))


async def extract_all(
    inputs: Iterable[Entry],
    out: Path,
    extractor: Extractor,
    restart: bool = False,
    progress: Callable[[int, Tally], None] | None = None,
) -> Tally:
    """Goes on with `out`, or begins it. `restart` begins anew and keeps what there was as `.previous`. `progress` hears
    (lines of this run, tally). Raises BatchStopped, as `run_batch`."""
    tally = Tally()

    def told(_: Entry, fields: Mapping[str, Any]) -> None:
        tally.model += fields["by"] == "model"
        tally.rules += fields["by"] == "rules"
        if progress:
            progress(tally.done, tally)

    tally.before = await run_batch(inputs, out, _Worker(extractor, tally), restart, told)
    return tally
