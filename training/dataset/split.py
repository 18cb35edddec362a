"""Which part a query belongs to: by time, and by items that training must not see. Pure.

A model is trained on the past and judged on what came later, so queries are put in the order in which they were first
asked and cut at the ratios. A query stays whole: asked again later it stays where it was first, and what was learnt of
it since counts there. What has no time (examples an app adds) is cut by a hash. A query of the training part that is
answered by an unseen item goes to the test part.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.schema import DataSpec
from training.dataset.example import Example
from training.dataset.keys import is_unseen, share_of

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Positions in `PARTS`."""


@dataclass(slots=True)
class Queries:
    """One entry per query, in the order of their keys: when it was first asked (0: nobody knows), where its hash lies
    in [0, 1), how many examples it has, and whether an unseen item answers it."""

    first_s: array[float] = field(default_factory=lambda: array("d"))
    share: array[float] = field(default_factory=lambda: array("d"))
    size: array[int] = field(default_factory=lambda: array("q"))
    unseen: array[int] = field(default_factory=lambda: array("b"))

    def add(self, key: bytes, first_s: float, kept: list[Example], seed: int, data: DataSpec) -> None:
        self.first_s.append(first_s)
        self.share.append(share_of(key, key=f"split {seed}".encode()))
        self.size.append(len(kept))
        self.unseen.append(any(one.label and is_unseen(one.item, data.unseen_items_ratio) for one in kept))


def assign(queries: Queries, data: DataSpec) -> NDArray[np.int8]:
    """(queries,): the part of each."""
    first_s, share = np.array(queries.first_s, np.float64), np.array(queries.share, np.float64)
    size = np.array(queries.size, np.float64)
    place = share.copy()
    timed = np.flatnonzero(first_s > 0)
    if len(timed):
        # Keys break ties: queries of one moment come in the same order in every run
        order = timed[np.lexsort((timed, first_s[timed]))]
        place[order] = (np.cumsum(size[order]) - size[order] / 2) / size[order].sum()
    cuts = [data.train_ratio, data.train_ratio + data.validation_ratio]
    parts = np.searchsorted(cuts, place, side="right").astype(np.int8)
    parts[(parts == TRAIN) & (np.array(queries.unseen, np.int8) == 1)] = TEST
    return parts
