"""What a data set asks of whoever finds hard negatives; `training.negatives` has the adapter, tests have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Mined(NamedTuple):
    """A wrong item and the score the pipeline gave it."""

    item: str
    score: float


@dataclass(frozen=True, slots=True)
class MiningQuery:
    """A query of the training part with every item known to be right for it."""

    text: str
    right: frozenset[str]
    record: Mapping[str, Any] = field(default_factory=dict)


class Miner(Protocol):
    def mine(self, queries: Sequence[MiningQuery], count: int) -> list[list[Mined]]:
        """Per query at most `count` wrong items, the hardest first. Deterministic."""
