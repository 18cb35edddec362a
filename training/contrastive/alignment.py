"""Which words of one text stand for which words of another, learnt from pairs of them. Pure; `vocabulary` calls it.

IBM Model 1 (Brown et al. 1993, "The Mathematics of Statistical Machine Translation"): every word on the right was
called up by one word on the left, or by none, and expectation maximisation finds out by which. Words that stand
everywhere on the right are explained by none, so what is left for a word on the left is what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
"""Of expectation maximisation; the likelihood hardly rises after five."""

Ids = Sequence[int]
Meaning = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Words on the right, and the share of each; the shares sum to 1."""


@dataclass(frozen=True, slots=True)
class _Cells:
    """Every word on the left beside every word on the right that it meets in a pair: one cell each."""

    link: NDArray[np.int64]
    """Which (left, right) a cell is of."""
    seen: NDArray[np.int64]
    """Which word on the right of which pair a cell might explain."""
    weight: NDArray[np.float64]
    left: NDArray[np.int64]
    """Of each link."""
    right: NDArray[np.int64]


def meanings(
    pairs: Sequence[tuple[Ids, Ids]], weights: Sequence[float], lefts: int, rights: int, most: int
) -> list[Meaning]:
    """For each word on the left, 0 to `lefts` - 1, the at most `most` words on the right, below `rights`, that say most
    about it; empty for a word in no pair, and for one that goes with every word on the right alike.

    A word's share grows with how likely it is there, and how much likelier than elsewhere: p log(p / q).
    """
    if not any(left and right for left, right in pairs):
        return [_nothing() for _ in range(lefts)]
    cells = _cells(pairs, weights, lefts, rights)
    counts = _expected(cells, lefts + 1)
    chances = counts / np.bincount(cells.left, counts)[cells.left]
    usual = np.bincount(cells.right, counts, minlength=rights) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.nan_to_num(chances * np.log(chances / usual[cells.right]))
    order = np.lexsort((cells.right, -worth, cells.left))
    starts = np.searchsorted(cells.left[order], np.arange(lefts + 1))
    found = []
    for left in range(lefts):
        best = order[starts[left] : starts[left + 1]][:most]
        best = best[worth[best] > 0]
        found.append((cells.right[best], worth[best] / worth[best].sum()) if len(best) else _nothing())
    return found


def _cells(pairs: Sequence[tuple[Ids, Ids]], weights: Sequence[float], lefts: int, rights: int) -> _Cells:
    """The word `lefts` stands for none: it is on the left of every pair. A word counts once in a text."""
    none = [lefts]
    left_of, right_of, seen_of, weight_of = [], [], [], []
    seen = 0
    for (left, right), weight in zip(pairs, weights, strict=True):
        here, there = np.unique([*left, *none]), np.unique(np.asarray(right, np.int64))
        left_of.append(np.repeat(here, len(there)))
        right_of.append(np.tile(there, len(here)))
        seen_of.append(np.tile(np.arange(seen, seen + len(there)), len(here)))
        weight_of.append(np.full(len(here) * len(there), weight))
        seen += len(there)
    links, link = np.unique(np.concatenate(left_of) * rights + np.concatenate(right_of), return_inverse=True)
    return _Cells(link, np.concatenate(seen_of), np.concatenate(weight_of), links // rights, links % rights)


def _expected(cells: _Cells, lefts: int) -> NDArray[np.float64]:
    """How often each link is expected to hold, from links that are all alike at first."""
    chances = 1 / np.bincount(cells.left, minlength=lefts)[cells.left]
    counts: NDArray[np.float64] = chances
    for _ in range(ROUNDS):
        claim = chances[cells.link]
        held = claim / np.bincount(cells.seen, claim)[cells.seen] * cells.weight
        counts = np.bincount(cells.link, held, len(chances)).astype(np.float64)
        chances = counts / np.bincount(cells.left, counts, minlength=lefts)[cells.left]
    return counts


def _nothing() -> Meaning:
    return np.empty(0, np.int64), np.empty(0)
