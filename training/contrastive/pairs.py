"""From examples to batches: which query meets which item text in which step. Pure; `loop` and `trainer` call it.

Weights. An example of twice the weight is drawn twice as often: an epoch draws as many pairs as there are, each in
proportion to its weight (systematic sampling, so that no pair gets more than one draw off its share). This is the
weighted loss in expectation, and holds for every loss. Of a query's turned-down items, those of more weight are drawn
more often, too.

Batches. The other items of a batch count as wrong, so none may hold two pairs of which one's item is right for the
other's query, or the same text twice: items of one text (vintages of a wine) are one here. Texts of like length share a
batch, since padding is computed like any token. An epoch's batches depend on pairs, seed and epoch only, never on the
number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from serving.components.text import item_text
from serving.schema import Item
from training.dataset.example import read_examples

WINDOW_BATCHES = 16
"""Pairs of this many batches are sorted by length together."""


@dataclass(frozen=True, slots=True)
class Pair:
    """`text` answers `query`; `rights` are all texts that do, `wrongs` those that were turned down for it."""

    query: str
    text: str
    weight: float = 1.0
    rights: frozenset[str] = frozenset()
    wrongs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Positions of pairs, and item texts that are wrong for every query among them."""

    rows: tuple[int, ...]
    wrongs: tuple[str, ...] = ()

    def share(self, rank: int, world: int) -> Batch:
        """What one of `world` workers computes: as many of each as any other; what cannot be shared is left out."""
        rows, wrongs = (len(part) // world * world for part in (self.rows, self.wrongs))
        return Batch(self.rows[rank:rows:world], self.wrongs[rank:wrongs:world])


@dataclass(frozen=True, slots=True)
class PairSet:
    """`missing` counts examples whose item has left the catalogue or has no text."""

    pairs: list[Pair]
    missing: int = 0


def read_items(path: Path, fields: Sequence[str]) -> dict[str, str]:
    """Item id -> the text that its index embeds."""
    texts = {}
    with path.open("rb") as file:
        for line in file:
            raw = json.loads(line)
            texts[raw["id"]] = item_text(Item(raw["id"], raw["fields"]), fields)
    return texts


def read_pairs(path: Path, texts: Mapping[str, str]) -> PairSet:
    """The pairs of one part of a data set, each query and text once, in the order first seen."""
    rights: dict[str, dict[str, float]] = {}
    wrongs: dict[str, dict[str, float]] = {}
    missing = 0
    for example in read_examples(path):
        text, query = texts.get(example.item, ""), example.query.strip()
        if not text or not query:
            missing += 1
            continue
        known = (rights if example.label else wrongs).setdefault(query, {})
        known[text] = max(known.get(text, 0.0), example.weight)
    pairs = []
    for query, answers in rights.items():
        right = frozenset(answers)
        wrong = tuple((text, weight) for text, weight in wrongs.get(query, {}).items() if text not in right)
        pairs += [Pair(query, text, weight, right, wrong) for text, weight in answers.items()]
    return PairSet(pairs, missing)


def draw(pairs: Sequence[Pair], rng: Random) -> list[int]:
    """len(pairs) positions, shuffled; one of the mean weight comes once (Kitagawa 1996, systematic resampling)."""
    mean = sum(pair.weight for pair in pairs) / len(pairs)
    drawn: list[int] = []
    reached, offset = 0.0, rng.random()
    for row, pair in enumerate(pairs):
        before, reached = reached, reached + pair.weight / mean
        drawn += [row] * (int(reached + offset) - int(before + offset))
    rng.shuffle(drawn)
    return drawn


@dataclass(slots=True)
class _Open:
    """A batch that is being filled."""

    rows: list[int] = field(default_factory=list)
    queries: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    rights: set[str] = field(default_factory=set)

    def takes(self, pair: Pair) -> bool:
        return pair.query not in self.queries and pair.text not in self.rights and self.texts.isdisjoint(pair.rights)

    def add(self, row: int, pair: Pair) -> None:
        self.rows.append(row)
        self.queries.add(pair.query)
        self.texts.add(pair.text)
        self.rights |= pair.rights | {pair.text}


@dataclass(frozen=True, slots=True)
class Batching:
    """How batches are made of pairs. `lengths` are tokens of each pair's texts; `least` pairs make a batch."""

    lengths: Sequence[int]
    size: int
    hard_negatives: int = 0
    least: int = 2


def epoch_batches(pairs: Sequence[Pair], how: Batching, seed: int, epoch: int) -> list[Batch]:
    """The batches of one epoch, in random order. Pairs that find no batch of `how.least` are left out."""
    rng = Random(f"{seed} epoch {epoch}")
    waiting = draw(pairs, rng)
    batches: list[Batch] = []
    left: list[int] = []
    window = how.size * WINDOW_BATCHES
    for start in range(0, len(waiting), window):
        last = start + window >= len(waiting)
        here = sorted([*left, *waiting[start : start + window]], key=lambda row: -how.lengths[row])
        left = []
        for opened in _fill(pairs, here, how.size):
            if len(opened.rows) == how.size or (last and len(opened.rows) >= how.least):
                batches.append(Batch(tuple(opened.rows), _hard(pairs, opened, how.hard_negatives, rng)))
            else:
                left += opened.rows
    rng.shuffle(batches)
    return batches


def _fill(pairs: Sequence[Pair], rows: Sequence[int], size: int) -> list[_Open]:
    """First fit: every pair into the first batch that is not full and has nothing against it."""
    filled: list[_Open] = []
    filling: list[_Open] = []
    for row in rows:
        place = next((batch for batch in filling if batch.takes(pairs[row])), None)
        if place is None:
            place = _Open()
            filling.append(place)
            filled.append(place)
        place.add(row, pairs[row])
        if len(place.rows) == size:
            filling.remove(place)
    return filled


def _hard(pairs: Sequence[Pair], batch: _Open, each: int, rng: Random) -> tuple[str, ...]:
    """At most `each` turned-down texts of every pair; none that is right for, or already with, any other.

    Weighted draws without replacement: the largest u^(1/w) (Efraimidis, Spirakis 2006).
    """
    found: dict[str, None] = {}
    for row in batch.rows:
        keyed = sorted(((rng.random() ** (1 / weight), text) for text, weight in pairs[row].wrongs), reverse=True)
        found |= {text: None for _, text in keyed[:each] if text not in batch.rights}
    return tuple(found)


def steps(pairs: Sequence[Pair], how: Batching, seed: int, accumulate: int) -> Iterator[list[Batch]]:
    """The batches of every optimiser step, epoch after epoch, without end; nothing where no batch can be made."""
    for epoch in count():
        batches = epoch_batches(pairs, how, seed, epoch)
        if not batches:
            return
        for start in range(0, len(batches), accumulate):
            yield batches[start : start + accumulate]


def step_count(pairs: Sequence[Pair], how: Batching, seed: int, accumulate: int, epochs: int) -> int:
    """Optimiser steps in `epochs` epochs of `steps`."""
    return sum(-(-len(epoch_batches(pairs, how, seed, epoch)) // accumulate) for epoch in range(epochs))
