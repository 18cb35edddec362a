"""Which negatives are kept: so many per positive of their part, the hardest first. Pure.

Every query gives its hardest negative before any gives its second, or the few queries with the highest scores would
take all the room. What people turned down comes before what they only did not choose.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.dataset.example import Example
from training.dataset.join import SHOWN
from training.dataset.keys import canonical, share_of
from training.dataset.split import TRAIN


@dataclass(slots=True)
class Negatives:
    """One entry per negative, in the order of the data set: its query's position, how many of its query come before it
    per positive, its score, and whether it is about an unseen item."""

    query: array[int] = field(default_factory=lambda: array("q"))
    turn: array[float] = field(default_factory=lambda: array("d"))
    score: array[float] = field(default_factory=lambda: array("d"))
    unseen: array[int] = field(default_factory=lambda: array("b"))

    def add(self, query: int, negatives: Sequence[Example], positives: int, unseen: Sequence[bool]) -> None:
        """`negatives` of one query in their order."""
        by_hardness = sorted(range(len(negatives)), key=lambda n: (_hardness(negatives[n]), _lot(negatives[n])))
        turns = {n: turn / max(positives, 1) for turn, n in enumerate(by_hardness)}
        for n, negative in enumerate(negatives):
            self.query.append(query)
            self.turn.append(turns[n])
            self.score.append(negative.score or 0.0)
            self.unseen.append(unseen[n])


def _hardness(negative: Example) -> tuple[bool, float]:
    return negative.event == SHOWN, -(negative.score or 0.0)


def _lot(negative: Example) -> float:
    """Of equally hard ones chance decides: by their order, items whose ids come first would be turned down more often
    than they were."""
    asked = [negative.query, negative.user, negative.item, negative.record, negative.at_s]
    return share_of(canonical(asked))


def keep(
    negatives: Negatives, parts: NDArray[np.int8], positives: Sequence[int], ratio: float
) -> tuple[NDArray[np.bool_], int]:
    """(negatives,): those that stay, at most `ratio` times `positives[part]` in each part, none about an unseen item in
    training; and how many of the others that was the reason for."""
    part = parts[np.array(negatives.query, np.int64)] if len(negatives.query) else np.zeros(0, np.int8)
    turn, score = np.array(negatives.turn, np.float64), np.array(negatives.score, np.float64)
    barred = (part == TRAIN) & (np.array(negatives.unseen, np.int8) == 1)
    kept = np.zeros(len(part), np.bool_)
    for number, count in enumerate(positives):
        rows = np.flatnonzero((part == number) & ~barred)
        order = np.lexsort((rows, -score[rows], turn[rows]))
        kept[rows[order[: int(ratio * count)]]] = True
    return kept, int(barred.sum())
