"""The Wide & Deep ranker that `training.wide_deep` made, as the rank phase asks it.

An item's features never change while it serves, and the same few hundred items are ranked again and again: their
encoded rows are kept. Users, items and values that training never saw are scored by what else is known of them (see
`serving.components.rank_features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.components.rank_features import Features
from serving.components.ranker import OnnxRanker
from serving.ports import ToRank
from serving.schema import Item

MOST_KEPT = 50_000
"""Encoded items: a few hundred bytes each."""


class WideDeepRanker:
    """Satisfies `serving.ports.Ranker`."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Raises PhaseFailed where `folder` holds no ranker that this version can read."""
        self._ranker = OnnxRanker(folder, threads)
        self.fingerprint = self._ranker.fingerprint
        self._kept: dict[str, tuple[Item, Features]] = {}

    def score(self, batch: Sequence[ToRank]) -> list[NDArray[np.float32]]:
        """As the port; one run of the graph for all."""
        counts = [len(one.items) for one in batch]
        if not sum(counts):
            return [np.empty(0, np.float32) for _ in batch]
        encoder = self._ranker.encoder
        asked = encoder.requests([one.user for one in batch], [one.record for one in batch])
        rows = self._encoded([item for one in batch for item in one.items])
        scores = self._ranker.run(asked.take(np.repeat(np.arange(len(batch)), counts)) | rows)
        return np.split(scores, np.cumsum(counts)[:-1])

    def _encoded(self, items: Sequence[Item]) -> Features:
        """An item that changed is another one: it is compared, not only its id."""
        kept = self._kept
        new = [item for item in items if (old := kept.get(item.id)) is None or _is_other(old[0], item)]
        if new and len(kept) + len(new) > MOST_KEPT:
            self._kept = kept = {}  # another thread goes on with the old one
            new = list(items)
        if new:
            fresh = self._ranker.encode(new)
            kept.update((item.id, (item, fresh.take(slice(i, i + 1)))) for i, item in enumerate(new))
        rows = [kept[item.id][1] for item in items]
        return Features(np.concatenate([one.codes for one in rows]), np.concatenate([one.numbers for one in rows]))


def _is_other(old: Item, new: Item) -> bool:
    return old is not new and old != new
