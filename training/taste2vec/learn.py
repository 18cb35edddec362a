"""The learner: epochs over a run's material, from the beginning or as an update of what serves.

Every draw is a function of seed, epoch, step and worker, so a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from serving.components.taste import TasteInputs
from training.ports import OBJECTIVE
from training.taste2vec.encoder import TasteEncoder, encode, tensors
from training.taste2vec.material import Examples, Ints, Material
from training.taste2vec.objective import drift, drop_parts, pull, push, resemble
from training.taste2vec.options import Taste2VecOptions

RECALL_AT = 10
WEIGHT_DECAY = 1e-3
ALIKE_ITEMS = 256
ALIKE_DEVIATIONS = 0.35
"""Per metric: how far two items may be apart and still count as alike."""
DEVIATION_FLOOR = 1e-3
"""Of a metric's range, so that one that is nearly constant is not blown up."""


class Learner:
    """`epochs` of `steps` optimiser steps. Of an update, no epoch where nothing is new."""

    def __init__(
        self, encoder: TasteEncoder, material: Material, options: Taste2VecOptions, *, update: bool, seed: int
    ) -> None:
        self._options = options
        self._material = material
        self._update = update
        self._seed = seed
        self._encoder = encoder
        self._before = encoder
        self.epochs = 0 if not len(material.fresh) else options.update_epochs if update else options.epochs
        self.epoch = 0
        self._best: dict[str, Any] = {"best": _weights(encoder), "best_metrics": {}}
        self.place(0, 1, "cpu")
        if self.epochs == 0:
            self._best["best_metrics"] = self.validate()

    def place(self, rank: int, world: int, device: str) -> None:
        """Before the first epoch. Each worker of `world` takes its share of every epoch; gradients are averaged."""
        self._rank, self._world, self._device = rank, world, device
        self._encoder = self._encoder.to(device)
        self._before = copy.deepcopy(self._encoder).eval()
        options = self._options
        rate = options.update_rate if self._update else options.learning_rate
        self._optimiser = torch.optim.AdamW(self._encoder.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)

    @property
    def steps(self) -> int:
        """Of an epoch: the same for every worker."""
        return max(1, -(-len(self._material.fresh) // (self._options.batch * self._world)))

    def standardise(self) -> None:
        """Take mean and deviation of the metrics from the records and items at hand; a metric that was never seen
        keeps those of its range."""
        values = np.concatenate([self._material.queries.metrics, self._material.items.metrics])
        there = np.concatenate([self._material.queries.metrics_there, self._material.items.metrics_there]) > 0
        seen = there.sum(axis=0) > 1
        masked = np.where(there, values, np.nan)[:, seen]
        deviation = self._encoder.deviation.cpu().numpy().copy()
        mean = self._encoder.mean.cpu().numpy().copy()
        mean[seen] = np.nanmean(masked, axis=0)
        deviation[seen] = np.maximum(np.nanstd(masked, axis=0), DEVIATION_FLOOR * deviation[seen])
        self._encoder.mean.copy_(torch.from_numpy(mean))
        self._encoder.deviation.copy_(torch.from_numpy(deviation))
        self._before = copy.deepcopy(self._encoder).eval()

    def one_epoch(self) -> dict[str, float]:
        """The mean loss of the epoch, and the figures of the validation part after it."""
        self._encoder.train()
        order = np.random.default_rng([self._seed, self.epoch]).permutation(len(self._material.fresh))
        losses = []
        for step in range(self.steps):
            start = (step * self._world + self._rank) * self._options.batch
            # A worker whose share of the last step is empty begins again: all make as many steps.
            which = np.take(
                order, range(start, min(start + self._options.batch, max(len(order), start + 1))), mode="wrap"
            )
            losses.append(self._step(self._material.fresh.rows(which), step))
        self.epoch += 1
        metrics = {"loss": float(np.mean(losses)), **self.validate()}
        if not self._best["best_metrics"] or _score(metrics) > _score(self._best["best_metrics"]):
            self._best = {"best": _weights(self._encoder), "best_metrics": metrics}
        return metrics

    def validate(self) -> dict[str, float]:
        """MRR and recall at 10 of the validation part's queries over the whole catalogue; none without such a part."""
        chosen = self._material.validation.rows(self._material.validation.label == 1)
        if not len(chosen):
            return {}
        asked, first = np.unique(chosen.query, return_inverse=True)
        queries = encode(self._encoder, self._material.queries.rows(asked), self._device)
        scores = queries @ encode(self._encoder, self._material.items, self._device).T
        own = scores[first, chosen.item]
        ranks = 1 + (~(scores[first] <= own[:, None])).sum(axis=1)  # what is no number is last
        score = float((1 / ranks).mean())
        return {
            "validation_mrr": score,
            OBJECTIVE: 1 - score,
            f"validation_recall_at_{RECALL_AT}": float((ranks <= RECALL_AT).mean()),
        }

    def state(self) -> dict[str, Any]:
        optimiser = self._optimiser.state_dict()
        return {"epoch": self.epoch, "encoder": _weights(self._encoder), "optimiser": optimiser, **self._best}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self._encoder.load_state_dict(state["encoder"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._best = {key: state[key] for key in ("best", "best_metrics")}

    # --- one step

    def _step(self, fresh: Examples, step: int) -> float:
        options, old = self._options, self._material.old
        draw = np.random.default_rng([self._seed, self.epoch, step, self._rank])
        replayed = min(len(old), round(options.replay_ratio * len(fresh))) if self._update else 0
        again = old.rows(draw.choice(len(old), replayed, replace=False))
        batch = Examples(*(np.concatenate([getattr(fresh, f), getattr(again, f)]) for f in Examples.__slots__))
        generator = torch.Generator().manual_seed(int(draw.integers(2**63)))
        loss = self._loss(batch, generator)
        if options.alike:
            loss = loss + options.alike * self._unlike(draw)
        if replayed and options.anchor:
            loss = loss + options.anchor * self._drift(again, draw)
        self._optimiser.zero_grad()
        loss.backward()
        if self._world > 1:
            for parameter in self._encoder.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self._world
        torch.nn.utils.clip_grad_norm_(self._encoder.parameters(), 1.0)
        self._optimiser.step()
        return float(loss.detach())

    def _loss(self, batch: Examples, generator: torch.Generator) -> Tensor:
        options = self._options
        right = batch.rows(batch.label == 1)
        wrong = batch.rows(batch.label == 0)
        loss = torch.zeros((), device=self._device)
        # Items that were turned down stand beside the chosen ones: whatever a query does not want is told apart.
        there, place = np.unique(batch.item, return_inverse=True)
        items = self._encode(self._material.items.rows(there), generator)
        if len(right):
            queries = self._encode(self._material.queries.rows(right.query), generator)
            targets = self._tensor(self._targets(right, there))
            loss = loss + pull(queries, items, targets, self._tensor(right.weight), options.temperature)
        if len(wrong) and options.push:
            queries = self._encode(self._material.queries.rows(wrong.query), generator)
            theirs = items[torch.from_numpy(place[batch.label == 0]).to(self._device)]
            # In units of the softmax's logits, or the pull would drown it.
            strength = options.push / options.temperature
            loss = loss + strength * push(queries, theirs, self._tensor(wrong.weight), options.margin)
        return loss

    def _targets(self, right: Examples, items: Ints) -> NDArray[np.float32]:
        """(queries, items), rows that sum to 1: mostly the item of the row, the rest what its user likes besides."""
        own: NDArray[np.float32] = np.equal(items[None, :], right.item[:, None]).astype(np.float32)
        if not self._options.same_taste or not len(self._material.liked):
            return own
        also = (self._material.liked[right.user][:, items] & (right.user >= 0)[:, None]).astype(np.float32) * (1 - own)
        count = also.sum(axis=1, keepdims=True)
        share = np.where(count > 0, self._options.same_taste, 0.0)
        return np.asarray((1 - share) * own + share * also / np.maximum(count, 1), np.float32)

    def _unlike(self, draw: np.random.Generator) -> Tensor:
        """Of items drawn from the whole catalogue: records say what was drunk, measurements say what is alike."""
        count = len(self._material.items.text)
        drawn = draw.choice(count, min(count, ALIKE_ITEMS), replace=False)
        items = self._material.items.rows(drawn)
        deviation = self._encoder.deviation.cpu().numpy()
        targets = neighbourhoods(items.metrics / deviation, items.metrics_there)
        return resemble(self._encoder(*tensors(items, self._device)), self._tensor(targets), self._options.temperature)

    def _drift(self, again: Examples, draw: np.random.Generator) -> Tensor:
        """Of old queries, and of as many items drawn from the whole catalogue."""
        count = len(self._material.items.text)
        items = draw.choice(count, min(count, len(again)), replace=False)
        total = torch.zeros((), device=self._device)
        for inputs in (self._material.queries.rows(again.query), self._material.items.rows(items)):
            there = tensors(inputs, self._device)
            with torch.no_grad():
                before = self._before(*there)
            total = total + drift(self._encoder(*there), before) / 2
        return total

    def _encode(self, inputs: TasteInputs, generator: torch.Generator) -> Tensor:
        return self._encoder(*drop_parts(tensors(inputs, self._device), self._options.part_dropout, generator))

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def neighbourhoods(metrics: NDArray[np.float32], there: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, n): which other rows measure alike, as rows that sum to 1, or to 0 for rows that share no metric with any.
    `metrics` (n, m) in standard deviations; the distance of two rows is over the metrics that both have."""
    both = there @ there.T
    squares = ((metrics[:, None] - metrics[None]) ** 2 * there[:, None] * there[None]).sum(axis=2)
    near = np.where(both > 0, np.exp(-squares / np.maximum(both, 1) / (2 * ALIKE_DEVIATIONS**2)), 0.0)
    np.fill_diagonal(near, 0.0)
    total = near.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(near, total, out=np.zeros_like(near), where=total > 0), np.float32)


def _weights(encoder: TasteEncoder) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}


def _score(metrics: dict[str, float]) -> float:
    """What the best epoch has most of; without a validation part, the last is the best."""
    return metrics.get("validation_mrr", float("inf"))
