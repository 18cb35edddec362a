"""The losses: sentence-transformers' own for ranking, one of ours for distillation; each over Matryoshka dimensions.

`loop` calls them with columns of texts' features: queries, their items, and items that are wrong for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers.base.losses.merged_forward import column_merging_disabled
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from training.contrastive.encoder import Encoder
from training.contrastive.options import ContrastiveOptions

Loss = Callable[[Sequence[dict[str, Any]], Any], Any]
"""(columns of features, target vectors or None) to the mean loss of the rows."""


def make_loss(encoder: Encoder, options: ContrastiveOptions, *, gather: bool) -> Loss:
    """`gather`: every worker's items are wrong ones for every other's queries, as they would be for one worker's."""
    directions = ("query_to_doc", "doc_to_query") if options.symmetric else ("query_to_doc",)
    ranking: dict[str, Any] = {
        "scale": options.scale,
        "directions": directions,
        "partition_mode": "per_direction" if options.symmetric else "joint",
        "gather_across_devices": gather,
    }
    loss: Any
    if options.method == "distill":
        loss = StayLoss(encoder.model, options.keep_weight)
    elif options.method == "cached_mnrl":
        loss = CachedMultipleNegativesRankingLoss(encoder.model, mini_batch_size=options.mini_batch_size, **ranking)
    else:
        loss = MultipleNegativesRankingLoss(encoder.model, **ranking)
    if options.matryoshka:
        sizes = sorted({*options.matryoshka, encoder.dimension}, reverse=True)
        loss = MatryoshkaLoss(encoder.model, loss, sizes, [1 / len(sizes)] * len(sizes))

    def compute(columns: Sequence[dict[str, Any]], targets: Any) -> Any:
        # In one column padded to the longest item, short queries would cost as much as items.
        with column_merging_disabled():
            return loss(columns, targets)

    return compute


class StayLoss(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """Squared distance of unit vectors to where the teacher has them (Reimers, Gurevych 2020, arXiv 2004.09813).

    Two columns, queries and their items, and one target for each row: the teacher's vector of the item. With three
    columns the third is left out: what is wrong for a query says nothing of where it belongs.
    """

    def __init__(self, model: Any, keep_weight: float) -> None:
        super().__init__()
        self.model = model
        self.keep_weight = keep_weight

    def forward(self, columns: Sequence[dict[str, Any]], targets: Any) -> Any:
        targets = torch.nn.functional.normalize(targets, dim=-1)
        total = self._distance(columns[0], targets)
        return total + self.keep_weight * self._distance(columns[1], targets) if self.keep_weight else total

    def _distance(self, column: dict[str, Any], targets: Any) -> Any:
        vectors = torch.nn.functional.normalize(self.model(column)["sentence_embedding"], dim=-1)
        return (vectors - targets).square().sum(-1).mean()
