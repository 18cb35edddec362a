"""What is like what was asked for, and like what this user chose before, by attributes.

What was asked for are the filters and preferences of the query: the score is the share of them that an item has. What
the user likes is the mean of what they chose, as features of the items (Pazzani, Billsus 2007, "Content-Based
Recommendation Systems"). New items are as good as old ones here: only their attributes count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

from serving.components.catalogue import Catalogue
from serving.components.funnel import Funnel, feature_matrix, matrix_of
from serving.ports import Hits, Mask
from serving.retrieve.funnels.base import NOTHING, Scores, best
from serving.schema import Item, Query


class ContentSource:
    """Satisfies `serving.ports.Source`. `arrays["profiles"]`: (people, features), sparse, rows of unit length; `about`:
    "kinds", "edges", "features" [[attribute, value, weight]], and the shares "asked" and "profile"."""

    def __init__(self, funnel: Funnel, catalogue: Catalogue, name_of: Callable[[str], str]) -> None:
        self._catalogue = catalogue
        self._name_of = name_of
        self._row = {name: row for row, name in enumerate(funnel.people)}
        about = funnel.about
        self._kinds, self._edges = about["kinds"], about["edges"]
        self._weights = {(name, value): float(weight) for name, value, weight in about["features"]}
        self._shares = float(about["asked"]), float(about["profile"])
        self._profiles = matrix_of(funnel, "profiles", len(self._weights))
        self._features = self._features_of([catalogue.item(row) for row in range(catalogue.rows)])

    def search(self, queries: Sequence[Query], allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        features = self._features
        found = []
        for query, mask in zip(queries, allowed, strict=True):
            parts = [part for part in (self._asked(query), self._liked(query, features)) if part is not None]
            rows = min((len(scores) for _, scores in parts), default=0)
            total = sum(share for share, _ in parts)
            if not rows or total <= 0:
                found.append(NOTHING)
                continue
            scores = sum((share * scores[:rows] for share, scores in parts), np.zeros(rows, np.float32)) / total
            found.append(best(np.asarray(scores, np.float32), mask, top_k))
        return found

    def add(self, first_row: int, items: Sequence[Item]) -> None:
        self._features = sp.csr_matrix(sp.vstack([self._features[:first_row], self._features_of(items)]))

    def _asked(self, query: Query) -> tuple[float, Scores] | None:
        wishes = [{name: wanted} for filters in (query.filters, query.prefer) for name, wanted in filters.items()]
        masks = [mask for wish in wishes if (mask := self._catalogue.allowed(wish)) is not None]
        if not masks:
            return None
        rows = min(map(len, masks))
        return self._shares[0], np.mean([mask[:rows] for mask in masks], axis=0, dtype=np.float32)

    def _liked(self, query: Query, features: sp.csr_matrix) -> tuple[float, Scores] | None:
        row = self._row.get(self._name_of(query.user)) if query.user else None
        if row is None:
            return None
        cosines = features @ self._profiles[[row]].T
        return self._shares[1], np.asarray(cosines.todense(), np.float32).ravel()

    def _features_of(self, items: Sequence[Item]) -> sp.csr_matrix:
        return feature_matrix(items, self._kinds, self._edges, self._weights)
