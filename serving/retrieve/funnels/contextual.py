"""What is chosen at such a time and in such a place, by the fields of the query's record. A query that says nothing of
either gets nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.components.funnel import Funnel, slot_of
from serving.retrieve.funnels.base import ItemFunnel, Scores, share_of_best
from serving.schema import Query


class ContextualSource(ItemFunnel):
    """`about["fields"]`: [{"name", "choices", "low", "high"}], `about["slots"]`; `arrays["context_<i>"]`:
    (values of field i, items), the share of each item in what was chosen there."""

    def __init__(self, funnel: Funnel, ids: Sequence[str]) -> None:
        super().__init__(funnel, ids)
        self._fields = funnel.about["fields"]
        self._slots = int(funnel.about["slots"])
        self._shares = [funnel.arrays[f"context_{i}"] for i in range(len(self._fields))]

    def scores(self, query: Query) -> Scores | None:
        """The mean over the fields that the record has, each against the most chosen item there."""
        known: list[Scores] = []
        for one, shares in zip(self._fields, self._shares, strict=True):
            value = query.record.get(one["name"])
            slot = None if value is None else slot_of(value, one["choices"], one["low"], one["high"], self._slots)
            if slot is not None:
                known.append(share_of_best(shares[slot]))
        return np.asarray(np.mean(known, axis=0), np.float32) if known else None
