"""What every funnel does: scores over the items it learnt of, brought to the rows of the live catalogue.

An item that changes keeps what was learnt of it: its new row stands for the same item. An item that is new to the
funnel has no score, and other sources propose it until the next release.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.components.funnel import Funnel
from serving.ports import Hits, Mask
from serving.schema import Item, Query

Scores = NDArray[np.float32]
NOTHING = Hits(np.empty(0, np.int64), np.empty(0, np.float32))


def best(scores: Scores, allowed: Mask | None, top_k: int) -> Hits:
    """The rows with the highest scores above 0, best first, equals by row. A row of a mask that came later than the
    scores, or the other way round, is left for the next search."""
    rows = len(scores) if allowed is None else min(len(scores), len(allowed))
    usable = scores[:rows] > 0 if allowed is None else (scores[:rows] > 0) & allowed[:rows]
    found = np.flatnonzero(usable)
    if len(found) > top_k:
        worst = np.partition(scores[found], len(found) - top_k)[len(found) - top_k]
        found = found[scores[found] >= worst]
    found = found[np.lexsort((found, -scores[found]))][:top_k]
    return Hits(found.astype(np.int64), scores[found].astype(np.float32))


class ItemFunnel(ABC):
    """Satisfies `serving.ports.Source` for a funnel that scores the items it learnt of. `ids`: of the live rows."""

    def __init__(self, funnel: Funnel, ids: Sequence[str]) -> None:
        self._place = {item_id: place for place, item_id in enumerate(funnel.ids)}
        self._size = len(funnel.ids)
        self._places = self._places_of(ids)

    @abstractmethod
    def scores(self, query: Query) -> Scores | None:
        """(items of the funnel,) 0..1; None where it has nothing to say."""

    def search(self, queries: Sequence[Query], allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        places = self._places
        found = []
        for query, mask in zip(queries, allowed, strict=True):
            scores = self.scores(query)
            # The last place stands for items that are new to the funnel.
            found.append(NOTHING if scores is None else best(np.append(scores, np.float32(0))[places], mask, top_k))
        return found

    def add(self, first_row: int, items: Sequence[Item]) -> None:
        self._places = np.concatenate([self._places[:first_row], self._places_of([item.id for item in items])])

    def _places_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self._place.get(item_id, self._size) for item_id in ids], np.int64)


def share_of_best(scores: NDArray[np.float32]) -> Scores:
    """Divided by the best, so that it is 1."""
    most = float(scores.max(initial=0.0))
    return np.asarray(scores / most if most > 0 else scores, np.float32)
