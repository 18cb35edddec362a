"""Extracts over a whole file: one line of output for each input, in the same order, whatever happens on the way.

An app's script calls it (`examples/beauty-finder/beauty.py extract`), it calls an `Extractor`. The output is one file
of JSON lines that is only ever appended to: first a line that says what made it, then `{"id", "of", "values", "by"}`
for each input, `of` being a digest of the text. So how far a job came is the number of complete lines: a run that was
killed is gone on with by starting it again. The half line it may have left is cut off, and what is there is compared
with the input before anything is added. Another prompt, schema, model or lexicon does not continue the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from training.errors import ExtractionStopped
from training.extract.ports import Extraction, Extractor, Form

FORMAT = 1
AHEAD = 8
"""Texts under way or waiting for their turn to be written, per text an extractor works on at a time."""
SYNC_LINES, SYNC_S = 2000, 1.0
READ_BYTES = 1 << 20


class Text(NamedTuple):
    """One input. Ids need not differ, but with their texts they have to come in the same order in every run."""

    id: str
    text: str


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

    def add(self, extraction: Extraction) -> None:
        self.model += extraction.by == "model"
        self.rules += extraction.by == "rules"
        self.asked_again += max(0, extraction.asked - 1)


def run_job(
    inputs: Iterable[Text],
    out: Path,
    extractor: Extractor,
    restart: bool = False,
    progress: Callable[[int, Tally], None] | None = None,
) -> Tally:
    """As `extract_all`, from where no event loop runs."""
    return asyncio.run(extract_all(inputs, out, extractor, restart, progress))


async def extract_all(
    inputs: Iterable[Text],
    out: Path,
    extractor: Extractor,
    restart: bool = False,
    progress: Callable[[int, Tally], None] | None = None,
) -> Tally:
    """Goes on with `out`, or begins it. `restart` begins anew and keeps what there was as `.previous`. `progress` hears
    (lines of this run, tally). Memory is bounded by the texts under way.

    Raises ExtractionStopped: the extractor gave up (what it had found is written), `out` was made of other inputs or by
    another extractor, or another process writes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out) as file:
        _begin(file, out, extractor, restart)
        source = iter(inputs)
        tally = Tally(before=_skip_done(file, out, source))
        writer = _Writer(file)
        try:
            async for text, extraction in _extractions(source, extractor):
                tally.add(extraction)
                writer.add(orjson.dumps({"id": text.id, "of": text_digest(text.text), "values": extraction.values,
                                         "by": extraction.by}))  # fmt: skip
                if progress:
                    progress(tally.done, tally)
        finally:
            writer.sync()
    return tally


async def _extractions(source: Iterator[Text], extractor: Extractor) -> AsyncIterator[tuple[Text, Extraction]]:
    """In the order of the inputs, with as many texts under way as keep the extractor busy while the first is late."""
    ahead: deque[tuple[Text, asyncio.Task[Extraction]]] = deque()
    try:
        for text in source:
            ahead.append((text, asyncio.create_task(extractor.extract(text.text))))
            if len(ahead) >= AHEAD * extractor.at_once:
                first, task = ahead[0]
                yield first, await task
                ahead.popleft()
        while ahead:
            first, task = ahead[0]
            yield first, await task
            ahead.popleft()
    finally:
        for _, task in ahead:
            task.cancel()
        await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)


class _Writer:
    """Appends lines; what has been on its way for SYNC_S or SYNC_LINES is on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: list[bytes] = []
        self._last = time.monotonic()

    def add(self, line: bytes) -> None:
        self._lines.append(line + b"\n")
        if len(self._lines) >= SYNC_LINES or time.monotonic() - self._last >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        lines, self._lines = self._lines, []
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._last = time.monotonic()


@contextmanager
def _locked(out: Path) -> Iterator[BinaryIO]:
    """The file for reading and appending, by one process at a time."""
    with out.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExtractionStopped(f"another process is writing {out}: wait for it, or stop it") from None
        yield file


def _begin(file: BinaryIO, out: Path, extractor: Extractor, restart: bool) -> None:
    """Cut off a half line; write the first line, or compare it."""
    _cut_half_line(file)
    about = _about(extractor.form, extractor)
    file.seek(0)
    first = file.readline()
    if first:
        made = _parse_about(first, out)
        if made == about and not restart:
            return
        if not restart:
            raise ExtractionStopped(
                f"{out} was made by {_named(made)}, this run is {_named(about)}: begin anew with --restart (the old "
                "file is kept as .previous), or write to another file"
            )
        _copy(file, out.with_name(f"{out.name}.previous"))
    file.truncate(0)
    file.write(orjson.dumps({"about": about}) + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _cut_half_line(file: BinaryIO) -> None:
    """A run that was killed may leave a last line without its end."""
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep:
        start = max(0, keep - READ_BYTES)
        file.seek(start)
        at = file.read(keep - start).rfind(b"\n")
        if at >= 0:
            keep = start + at + 1
            break
        keep = start
    if keep < end:
        file.truncate(keep)


def _copy(file: BinaryIO, to: Path) -> None:
    """The old file by its content: its name stays with the lock."""
    file.seek(0)
    with to.open("wb") as kept:
        while part := file.read(READ_BYTES):
            kept.write(part)
        os.fsync(kept.fileno())


def _about(form: Form, extractor: Extractor) -> dict[str, Any]:
    identity = dict(extractor.identity)
    return {"format": FORMAT, "form": form.name, "by": identity, "fingerprint": form.fingerprint(identity)}


def _named(about: dict[str, Any]) -> str:
    by = about["by"]
    return f"{by.get('model', by.get('engine'))} with the form {about['form']} {about['fingerprint'][:12]}"


def _parse_about(line: bytes, out: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = orjson.loads(line)["about"]
        _named(about)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ExtractionStopped(f"{out} is no file of extractions: its first line does not say what made it") from None
    return about


def _skip_done(file: BinaryIO, out: Path, source: Iterator[Text]) -> int:
    """Move `source` past what is done; returns how many lines that are."""
    file.seek(0)
    done = 0
    for number, line in enumerate(file, 1):
        if number == 1:
            continue
        made, text = _parse(line, out, number), next(source, None)
        if text is None or made["id"] != text.id or made["of"] != text_digest(text.text):
            raise ExtractionStopped(
                f"{out}, line {number} is of {made['id']}, but the input there is {text.id if text else 'at its end'} "
                "or has another text: the file was made of other inputs; write to another file"
            )
        done += 1
    return done


def _parse(line: bytes, out: Path, number: int) -> dict[str, Any]:
    try:
        made: dict[str, Any] = orjson.loads(line)
        made["id"], made["of"], made["values"], made["by"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ExtractionStopped(f"{out}, line {number} is no extraction: the file is damaged") from None
    return made


def text_digest(text: str) -> str:
    """16 hex digits that tell whether a text is the one that was read."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read_extractions(out: Path) -> Iterator[dict[str, Any]]:
    """`{"id", "of", "values", "by"}` a line, in the order of the inputs; a half line at the end is left out. Raises
    ExtractionStopped for a file that is none."""
    with out.open("rb") as file:
        _parse_about(file.readline(), out)
        for number, line in enumerate(file, 2):
            if line.endswith(b"\n"):
                yield _parse(line, out, number)
