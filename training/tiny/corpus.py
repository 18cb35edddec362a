"""What the tiny model is taught, and what it is asked afterwards: the instructions that the examples make themselves.

An example takes part with a file `tiny.yaml` beside its app.yaml:

    teach: lab.py instructions --count 3000           # as `data.extra`: a .jsonl file, or a script that prints
    ask: lab.py instructions --held-out --count 24    # prompts that nothing was taught of, with their answers

Each line is an instruction as `training.lora` reads it, here with one answer, and may name a `schema`: the file beside
it, or the JSON schema itself, that the answer satisfies. `training.tiny.build` calls `read_lessons`; it runs scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import ValidationError

from serving.schema.spec import Spec
from training.errors import DatasetInvalid
from training.lora.instructions import Instruction, parse_instruction
from training.source import open_source

FILE = "tiny.yaml"


class LessonsSpec(Spec):
    """The keys of tiny.yaml."""

    teach: str
    ask: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """`schema` is the JSON schema of the answer, None for words. `app` is the example that it is of."""

    app: str
    instruction: Instruction
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Lessons:
    teach: tuple[Lesson, ...]
    ask: tuple[Lesson, ...]


def read_lessons(examples: Path, told: Callable[[int], None] = lambda _: None) -> Lessons:
    """Of every example that has a tiny.yaml, in name order; `told` hears how many lessons there are so far.

    Raises DatasetInvalid that names the file, and where there is no such example (an installation without `examples`).
    """
    files = sorted(examples.glob(f"*/{FILE}"))
    if not files:
        raise DatasetInvalid(f"no folder in {examples} has a {FILE}: the tiny model is made from the source tree")
    teach: list[Lesson] = []
    ask: list[Lesson] = []
    for file in files:
        spec = _spec(file)
        teach += _told(_read(spec.teach, file.parent), told, len(teach))
        ask += _read(spec.ask, file.parent)
    return Lessons(tuple(teach), tuple(ask))


def _told(lessons: Iterator[Lesson], told: Callable[[int], None], before: int) -> Iterator[Lesson]:
    for number, lesson in enumerate(lessons, before + 1):
        yield lesson
        told(number)


def _spec(file: Path) -> LessonsSpec:
    try:
        return LessonsSpec.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise DatasetInvalid(f"{file} has to have `teach` and `ask`, each a file or a script: {error}") from None


def _read(source: str, folder: Path) -> Iterator[Lesson]:
    known: dict[str, Mapping[str, Any]] = {}
    with open_source(source, folder, "lesson", DatasetInvalid) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{source}, line {number}"
                for instruction in parse_instruction(line, where):
                    yield Lesson(
                        folder.name, instruction, _schema(orjson.loads(line).get("schema"), folder, known, where)
                    )


def _schema(named: Any, folder: Path, known: dict[str, Mapping[str, Any]], where: str) -> Mapping[str, Any] | None:
    if named is None or isinstance(named, dict):
        return named
    if named not in known:
        try:
            known[str(named)] = json.loads((folder / str(named)).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetInvalid(f"{where}: the schema {named!r} cannot be read: {error}") from None
    return known[str(named)]
