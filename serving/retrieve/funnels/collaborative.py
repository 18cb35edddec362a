"""What those who chose alike chose, and what was chosen along with what this user chose.

Both neighbourhoods were found when the release was built (see `training.funnels`); an unknown user has none, and the
source stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serving.components.funnel import Funnel, matrix_of
from serving.retrieve.funnels.base import ItemFunnel, Scores, share_of_best
from serving.schema import Query


class CollaborativeSource(ItemFunnel):
    """Arrays: `chosen` (people, items), `people` (people, people) and `items` (items, items), sparse. `about`: the
    shares of both sides, `users` and `items`."""

    def __init__(self, funnel: Funnel, ids: Sequence[str], name_of: Callable[[str], str]) -> None:
        super().__init__(funnel, ids)
        self._row = {name: row for row, name in enumerate(funnel.people)}
        self._name_of = name_of
        self._chosen = matrix_of(funnel, "chosen", len(funnel.ids))
        self._people = matrix_of(funnel, "people", len(funnel.people))
        self._items = matrix_of(funnel, "items", len(funnel.ids))
        self._shares = float(funnel.about["users"]), float(funnel.about["items"])

    def scores(self, query: Query) -> Scores | None:
        row = self._row.get(self._name_of(query.user)) if query.user else None
        if row is None:
            return None
        sides = (self._people[[row]] @ self._chosen, self._chosen[[row]] @ self._items)
        parts = [(share, np.asarray(side.todense(), np.float32).ravel())
                 for share, side in zip(self._shares, sides, strict=True)]  # fmt: skip
        scores = sum((share * share_of_best(part) for share, part in parts), np.zeros(self._size, np.float32))
        return np.asarray(scores / max(sum(self._shares), 1e-9), np.float32)
