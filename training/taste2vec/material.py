"""What the loop reads: every query, item and example of a run as arrays, in one file, made once per run.

Sentences are embedded here, by the frozen embedder, so that a step of training costs a small network and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.components.record import compose, item_input
from serving.components.taste import TasteInputs, TasteReader
from serving.schema import AppSpec, Item, SourceSpec
from training.dataset.example import Example
from training.taste2vec.online import Lesson

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Examples:
    """(n,) each: rows of queries and items, 1 for right and 0 for wrong, weight, and user (-1: nobody)."""

    query: Ints
    item: Ints
    label: Ints
    weight: NDArray[np.float32]
    user: Ints

    def __len__(self) -> int:
        return len(self.query)

    def rows(self, which: Any) -> Examples:
        return Examples(*(getattr(self, name)[which] for name in ("query", "item", "label", "weight", "user")))


@dataclass(frozen=True, slots=True)
class Material:
    """`liked` (users, items) bool: what each user liked, among what is learnt."""

    queries: TasteInputs
    items: TasteInputs
    fresh: Examples
    old: Examples
    validation: Examples
    liked: NDArray[np.bool_]


def read_items(file: Path) -> list[Item]:
    with file.open(encoding="utf-8") as lines:
        raw = [json.loads(line) for line in lines if line.strip()]
    return [Item(one["id"], one["fields"], one.get("attributes", {})) for one in raw]


def prepare(
    file: Path,
    reader: TasteReader,
    lesson: Lesson,
    validation: Sequence[Example],
    items: Mapping[str, str],
) -> None:
    """Write the material. `items`: id -> what the embedder is given of it. Examples of items that are gone are left
    out."""
    places = {item: row for row, item in enumerate(items)}
    queries: dict[str, int] = {}
    users: dict[str, int] = {}
    parts = {"fresh": lesson.fresh, "old": lesson.old, "validation": validation}
    arrays: dict[str, NDArray[Any]] = {}
    for part, examples in parts.items():
        table = _table(examples, places, queries, users)
        arrays |= {f"{part}.{name}": table[:, column] for column, name in enumerate(("query", "item", "label", "user"))}
        arrays[f"{part}.weight"] = np.array([e.weight for e in examples if e.item in places], np.float32)
    liked = np.zeros((len(users), len(items)), np.bool_)
    for part in ("fresh", "old"):
        known = (arrays[f"{part}.user"] >= 0) & (arrays[f"{part}.label"] == 1)
        liked[arrays[f"{part}.user"][known], arrays[f"{part}.item"][known]] = True
    arrays["liked"] = liked
    for name, inputs in (("queries", reader.read(list(queries))), ("items", reader.read(list(items.values())))):
        arrays |= {f"{name}.{field}": array for field, array in inputs._asdict().items()}
    partial = file.with_suffix(".partial.npz")
    savez: Any = np.savez  # its stub takes no arrays by keyword
    savez(partial, **arrays)
    partial.replace(file)


def load(file: Path) -> Material:
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}

    def inputs(name: str) -> TasteInputs:
        return TasteInputs(*(arrays[f"{name}.{field}"] for field in TasteInputs._fields))

    def examples(part: str) -> Examples:
        return Examples(*(arrays[f"{part}.{name}"] for name in ("query", "item", "label", "weight", "user")))

    parts = examples("fresh"), examples("old"), examples("validation")
    return Material(inputs("queries"), inputs("items"), *parts, arrays["liked"])


def item_inputs(items: Iterable[Item], spec: AppSpec, source: SourceSpec) -> dict[str, str]:
    """Id -> what index builds give the embedder of it."""
    weights, field = spec.text_weights(source), spec.record_field(source)
    return {item.id: item_input(item, weights, field) for item in items}


def _table(
    examples: Sequence[Example], places: Mapping[str, int], queries: dict[str, int], users: dict[str, int]
) -> Ints:
    rows = [
        (
            queries.setdefault(compose(e.query, e.record), len(queries)),
            places[e.item],
            e.label,
            users.setdefault(e.user, len(users)) if e.user else -1,
        )
        for e in examples
        if e.item in places
    ]
    return np.array(rows, np.int64).reshape(-1, 4)
