"""What a model in training is worth: its loss and its ranking on the validation part. `loop` calls it on one worker.

The ranking is that of the pairs' own items among a sample of the catalogue: good for comparing two moments of one
training, while the gates of a run search the whole index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.contrastive.encoder import Encoder
from training.contrastive.losses import Loss
from training.contrastive.options import ContrastiveOptions
from training.contrastive.pairs import Batching, Pair, epoch_batches
from training.ports import OBJECTIVE

LOSS_BATCHES = 16
SCORE = "validation_mrr"
"""The metric by which one moment of a training is better than another."""


class Validation:
    """A fixed sample of the validation part; `measure` gives its figures. `texts` are all item texts."""

    def __init__(self, pairs: Sequence[Pair], texts: Sequence[str], options: ContrastiveOptions, seed: int) -> None:
        rng = Random(f"{seed} validation")
        self.pairs = list(pairs)
        rights = {pair.query: pair.rights for pair in pairs}
        self.queries = sorted(rights)
        if len(self.queries) > options.validation_queries:
            self.queries = sorted(rng.sample(self.queries, options.validation_queries))
        wanted = sorted({text for query in self.queries for text in rights[query]})
        others = sorted(set(texts) - set(wanted))
        room = max(0, options.validation_items - len(wanted))
        self.items = [*wanted, *sorted(rng.sample(others, min(room, len(others))))]
        place = {text: row for row, text in enumerate(self.items)}
        self.rights = [{place[text] for text in rights[query]} for query in self.queries]
        self._options, self._seed = options, seed

    def measure(self, encoder: Encoder, loss: Loss, targets: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """Nothing where the part is empty."""
        if not self.queries:
            return {}
        ranks = self._ranks(encoder)
        found = {f"validation_recall_at_{k}": float((ranks <= k).mean()) for k in (1, 10)}
        worth = self._loss(encoder, loss, targets)
        score = float((1 / ranks).mean())
        # Not the loss: it is smaller with fewer wrong items beside, whatever the model is worth.
        return {SCORE: score, OBJECTIVE: 1 - score, **found} | ({} if worth is None else {"validation_loss": worth})

    def _ranks(self, encoder: Encoder) -> NDArray[np.int64]:
        """Rank, from 1, of the best right item of each query; equal scores count against it, and no number is last."""
        cut = encoder.served
        queries = unit(encoder.encode(self.queries, encoder.query_prompt)[:, :cut])
        items = unit(encoder.encode(self.items, encoder.document_prompt)[:, :cut])
        ranks = []
        for row, rights in enumerate(self.rights):
            scores = items @ queries[row]
            best = max(scores[right] for right in rights)
            before = sum(scores >= best) - sum(scores[right] >= best for right in rights)
            ranks.append(1 + before if np.isfinite(best) else len(self.items))
        return np.asarray(ranks, np.int64)

    def _loss(self, encoder: Encoder, loss: Loss, targets: Mapping[str, NDArray[np.float32]]) -> float | None:
        how = Batching([0] * len(self.pairs), self._options.batch_size)
        batches = epoch_batches(self.pairs, how, self._seed, 0)[:LOSS_BATCHES]
        losses = []
        encoder.model.eval()
        with torch.no_grad():
            for batch in batches:
                pairs = [self.pairs[row] for row in batch.rows]
                losses.append(float(loss(*loss_inputs(encoder, pairs, (), targets))))
        encoder.model.train()
        return float(np.mean(losses)) if losses else None


def loss_inputs(
    encoder: Encoder, pairs: Sequence[Pair], wrongs: Sequence[str], targets: Mapping[str, NDArray[np.float32]]
) -> tuple[list[dict[str, Any]], Any]:
    """The columns of a batch, and its targets where there is a teacher."""
    columns = [
        encoder.features([pair.query for pair in pairs], encoder.query_prompt),
        encoder.features([pair.text for pair in pairs], encoder.document_prompt),
    ]
    if targets:
        rows = np.stack([targets[pair.text] for pair in pairs])
        return columns, torch.from_numpy(rows).to(encoder.device)
    if wrongs:
        columns.append(encoder.features(wrongs, encoder.document_prompt))
    return columns, None


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)
