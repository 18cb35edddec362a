"""What a language model was asked when it gave an answer, rebuilt from the trace as serving renders it.

`training.wiring` hands it to `training.dataset.conversations`. The prompt is that of app.yaml now, and the items are
those of the catalogue now: what is taught is the prompt that the next release sends. A trace does not say what its
session had said before, so neither does the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from serving.generate.prompt import Facts, Prompt, parse_prompt
from serving.ports import Message
from serving.schema import AppSpec, GenerateSpec, Trace
from training.dataset.conversations import AskedOf, plain_question


def asked_of(spec: AppSpec, app_folder: Path, items: Path) -> AskedOf:
    """`items`: the catalogue as JSON lines. Raises BadRequest for a prompt that is none, OSError."""
    if spec.generate is None:
        return plain_question
    text = (app_folder / spec.generate.prompt).read_text(encoding="utf-8")
    return _Asked(spec.generate, Prompt(parse_prompt(text), {}), items)


class _Asked:
    def __init__(self, spec: GenerateSpec, prompt: Prompt, items: Path) -> None:
        self._spec, self._prompt, self._items = spec, prompt, items
        self._places: dict[str, int] = {}
        with items.open("rb") as lines:
            place = 0
            for line in lines:
                self._places[orjson.loads(line)["id"]] = place
                place += len(line)

    def __call__(self, trace: Trace, line: int) -> Sequence[Message]:
        told = trace.lines[line] if line < len(trace.lines) else {}
        shown = list(told.get("shown", ()))[: self._spec.items]
        items = [
            {**fields, "id": one[0], "rank": rank, "score": one[1]}
            for rank, one in enumerate(shown, 1)
            if (fields := self._fields(one[0])) is not None
        ]
        understood = {key: told[key] for key in ("intent", "entities", "filters") if key in told}
        name = str(trace.answer.get("form") or "")
        form = self._prompt.form(name if name in self._prompt.forms else "")  # a form may have gone since
        return form.messages(Facts(str(told.get("raw") or trace.query), understood, items))

    def _fields(self, item: str) -> Mapping[str, Any] | None:
        """None for one that is no longer sold."""
        if item not in self._places:
            return None
        with self._items.open("rb") as lines:
            lines.seek(self._places[item])
            return dict(orjson.loads(lines.readline())["fields"])
