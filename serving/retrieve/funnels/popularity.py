"""What many looked at and ordered lately; the same for everybody."""

from __future__ import annotations

from collections.abc import Sequence

from serving.components.funnel import Funnel
from serving.retrieve.funnels.base import ItemFunnel, Scores
from serving.schema import Query


class PopularitySource(ItemFunnel):
    """`arrays["scores"]`: (items,) 0..1."""

    def __init__(self, funnel: Funnel, ids: Sequence[str]) -> None:
        super().__init__(funnel, ids)
        self._scores: Scores = funnel.arrays["scores"]

    def scores(self, query: Query) -> Scores:  # noqa: ARG002 - of every query
        return self._scores
