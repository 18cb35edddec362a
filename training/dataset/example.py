"""What a model learns from, and how it lies on disk between the steps of a job.

`training.dataset` builds it from feedback, apps add to it (`train.NAME.data.extra`), trainers read it. Pure but for the
two functions that read and write a folder: `train.jsonl`, `validation.jsonl`, `test.jsonl` (an example a line, in a
fixed order), `people.txt` (the pseudonyms of all whose events went in, also where another's example was kept; a line
each, some more than once) and `dataset.json` (the fingerprint and the counts).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import orjson

from registry.files import replace_file
from training.errors import DatasetInvalid

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
PEOPLE_FILE = "people.txt"


@dataclass(frozen=True, slots=True)
class Example:
    """For `query`, `item` was right (`label` 1) or wrong (0); `weight` says how much that counts.

    `at_s`: Unix time. `user` is a pseudonym (never a user's own id), "" for nobody. `rank`, from 1, and `score` are
    those with which the item was shown, None where it was not. `event` says what made the example: the feedback event,
    "shown" for what was shown and not chosen, "mined", or "extra". `record` is the structured part of a query, for
    models that read one. `slice` is the kind of query, for evaluation.
    """

    query: str
    item: str
    label: int
    weight: float = 1.0
    at_s: float = 0.0
    user: str = ""
    rank: int | None = None
    score: float | None = None
    event: str = "extra"
    slice: str = "all"
    record: Mapping[str, Any] = field(default_factory=dict)


_KEYS = frozenset(f.name for f in fields(Example))
_NUMBER, _TEXT = (int, float), (str,)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("query", "item", "user", "event", "slice"), _TEXT),
    **dict.fromkeys(("weight", "at_s"), _NUMBER),
    "label": (int,), "rank": (int, NoneType), "score": (*_NUMBER, NoneType), "record": (dict,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """`fingerprint`: SHA-256 hex over all examples and their parts. `counts`: what was found, dropped and why, and how
    many are in each part. `feedback_seq`: the last feedback event that was read. `unseen_items`: ids that no training
    example names."""

    fingerprint: str
    counts: Mapping[str, int]
    feedback_seq: int = 0
    unseen_items: tuple[str, ...] = ()


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """One JSON object a line, in the order given; returns how many."""
    count = 0
    with path.open("wb") as file:
        for example in examples:
            file.write(orjson.dumps(example, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_examples(path: Path) -> Iterator[Example]:
    """Raises DatasetInvalid that names file and line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_example(line, f"{path}, line {number}")


def parse_example(line: bytes | str, where: str) -> Example:
    """Raises DatasetInvalid. `where` names the line in it."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DatasetInvalid(f"{where}: not JSON: {error}") from None
    if not isinstance(raw, dict) or not {"query", "item"} <= set(raw):
        raise DatasetInvalid(f"{where}: an example is an object with `query` and `item`")
    if unknown := sorted(set(raw) - _KEYS):
        raise DatasetInvalid(f"{where}: unknown keys {unknown}; an example has {sorted(_KEYS)}")
    if wrong := sorted(key for key, value in raw.items() if not isinstance(value, _TYPES[key])):
        raise DatasetInvalid(f"{where}: `{wrong[0]}` cannot be {raw[wrong[0]]!r}")
    if raw.setdefault("label", 1) not in (0, 1) or not 0 < raw.setdefault("weight", 1.0) < math.inf:
        raise DatasetInvalid(f"{where}: `label` is 0 or 1 and `weight` is above 0")
    return Example(**raw)


def save_info(folder: Path, info: DatasetInfo) -> None:
    text = json.dumps({f.name: getattr(info, f.name) for f in fields(info)}, indent=1, sort_keys=True)
    replace_file(folder / "dataset.json", text)  # a folder that holds it is complete


def people_in(folder: Path) -> Iterator[str]:
    """The pseudonyms of all whose events went in; one may come twice."""
    with (folder / PEOPLE_FILE).open(encoding="ascii") as lines:
        yield from map(str.strip, lines)


def load_info(folder: Path) -> DatasetInfo:
    """Raises DatasetInvalid for a folder that `training.dataset` did not finish."""
    try:
        raw = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        return DatasetInfo(**{**raw, "unseen_items": tuple(raw["unseen_items"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetInvalid(f"{folder} holds no complete data set: {error}") from None
