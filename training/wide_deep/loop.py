"""The loop that every worker runs: batches, the weighted loss, early stopping, and what is saved.

All chance in it is a function of (seed, step, worker): a run that was killed goes on, from its newest checkpoint, to
the same weights as one that was not. A step's batch is one for all workers; each takes every `world`-th example of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn import functional

from serving.components.rank_features import UNKNOWN, FeatureEncoder, FeatureSpec
from training.errors import TrainingRefused
from training.ports import OBJECTIVE, Loop
from training.wide_deep.fit import Part
from training.wide_deep.model import Optimisers, WideDeep, share_gradients
from training.wide_deep.options import WideDeepOptions

STATE_FILE = "state.pt"
EVALUATION_ROWS = 16_384
SHUFFLE, HIDE, DROP = 1, 2, 3
"""What is drawn: a stream of its own for each."""


@dataclass(frozen=True, slots=True)
class Data:
    """What `prepare` made, and the weights to begin with, if any."""

    spec: FeatureSpec
    train: Part
    validation: Part
    start: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Progress:
    """`best` are the weights of the lowest validation loss (without a validation part: the newest)."""

    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    worse: int = 0
    best: Mapping[str, Any] | None = None


class Run:
    """One worker's training."""

    def __init__(self, data: Data, options: WideDeepOptions, seed: int, loop: Loop) -> None:
        self._data, self._options, self._seed, self._loop = data, options, seed, loop
        self._encoder = FeatureEncoder(data.spec)
        torch.manual_seed(seed)
        self._model = WideDeep(data.spec, options)
        if data.start is not None:
            try:
                self._model.take_over(data.start)
            except ValueError as error:
                raise TrainingRefused(
                    f"train.options.embeddings or hidden differ from those of the ranker that serves ({error}): keep "
                    "them, or train from nothing with `start: base`"
                ) from None
        self._model.to(loop.device)
        self._optimisers = Optimisers(self._model, options)
        self._progress = Progress()
        self._batch = min(options.batch_size, len(data.train)) // loop.world * loop.world
        if not self._batch:
            raise TrainingRefused(
                f"{len(data.train)} training examples in batches of {options.batch_size} are too few for {loop.world} "
                "workers: lower train.scaling.workers"
            )
        self._per_epoch = len(data.train) // self._batch
        self._hide = np.array(
            [
                options.unknown_ratio if name in ("user", "item") else options.unknown_value_ratio
                for name in data.spec.categories
            ]
        )
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def run(self) -> None:
        """Raises StopTraining, from the loop's report."""
        steps = self._options.epochs * self._per_epoch
        every = max(1, self._per_epoch // self._options.evaluations_per_epoch)
        self._loop.total(steps)
        if (folder := self._loop.restore()) is not None:
            self._load(folder)
        losses: list[float] = []
        while self._progress.step < steps and self._progress.worse < self._options.patience:
            losses.append(self._step(self._progress.step))
            self._progress.step += 1
            if self._progress.step % every == 0 or self._progress.step == steps:
                self._evaluate(float(np.mean(losses)))
                losses.clear()

    def _step(self, step: int) -> float:
        """One step of the optimisers; returns this worker's loss."""
        rows = self._rows(step)
        codes = np.array(self._data.train.features.codes[rows])
        rank, world = self._loop.rank, self._loop.world
        # Of the whole batch, so that the workers together hide what one alone would.
        hidden = np.random.default_rng([self._seed, HIDE, step]).random((self._batch, codes.shape[1]))
        codes[(hidden < self._hide)[rank::world]] = UNKNOWN
        torch.manual_seed(int(np.random.default_rng([self._seed, DROP, step, rank]).integers(2**62)))
        self._model.train()
        embedded_rows, numbers, wide = self._tensors(codes, self._data.train.features.numbers[rows])
        embedded = self._model.embed(embedded_rows)
        logits = self._model.head(embedded, numbers, wide)
        labels, weights = self._to(self._data.train.labels[rows]), self._to(self._data.train.weights[rows])
        loss = (weights * functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")).mean()
        penalty = sum(e.square().sum() for e in embedded) / len(rows)
        (loss + self._options.embedding_decay * penalty).backward()
        share_gradients(self._model, world)
        self._optimisers.step(self._batch)
        return float(loss.detach())

    def _rows(self, step: int) -> NDArray[np.int64]:
        """This worker's rows of the training part. What is left over of an epoch's shuffle is not read in it."""
        epoch, within = divmod(step, self._per_epoch)
        if self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, SHUFFLE, epoch]).permutation(len(self._data.train))
            self._epoch = epoch, order
        batch = self._epoch[1][within * self._batch : (within + 1) * self._batch]
        return batch[self._loop.rank :: self._loop.world]

    def _tensors(self, codes: NDArray[np.int32], numbers: NDArray[np.float32]) -> tuple[Any, Any, Any]:
        encoder = self._encoder
        return self._to(encoder.embedded(codes)), self._to(numbers), self._to(encoder.wide(codes))

    def _to(self, array: NDArray[Any]) -> Any:
        return torch.from_numpy(np.array(array)).to(self._loop.device)

    def _evaluate(self, train_loss: float) -> None:
        progress = self._progress
        loss = self._validation_loss()
        if loss is None or loss < progress.best_loss:
            progress.best = {name: value.detach().cpu().clone() for name, value in self._model.named_parameters()}
            progress.best_loss = progress.best_loss if loss is None else loss
            progress.best_step, progress.worse = progress.step, 0
        else:
            progress.worse += 1
        metrics = {"train_loss": train_loss, "epoch": progress.step / self._per_epoch}
        if loss is not None:
            metrics["validation_log_loss"] = metrics[OBJECTIVE] = loss
        self._loop.report(progress.step, metrics, self._save)

    def _validation_loss(self) -> float | None:
        """Weighted mean over the part, of which each worker reads a share; None where it is empty."""
        part, world = self._data.validation, self._loop.world
        if not len(part):
            return None
        mine = np.arange(self._loop.rank, len(part), world)
        sums = torch.zeros(2, dtype=torch.float64)
        self._model.eval()
        with torch.no_grad():
            for start in range(0, len(mine), EVALUATION_ROWS):
                rows = mine[start : start + EVALUATION_ROWS]
                logits = self._model(*self._tensors(part.features.codes[rows], part.features.numbers[rows])).cpu()
                labels, weights = (torch.from_numpy(np.array(a[rows])) for a in (part.labels, part.weights))
                losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
                sums += torch.stack([(weights * losses).double().sum(), weights.double().sum()])
        if world > 1:
            sums = sums.to(self._loop.device)
            distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def _save(self, folder: Path) -> None:
        progress = self._progress
        torch.save(
            {
                "model": self._model.state_dict(),
                "optimisers": self._optimisers.state_dict(),
                "progress": [progress.step, progress.best_step, progress.best_loss, progress.worse],
                "best": progress.best,
            },
            folder / STATE_FILE,
        )

    def _load(self, folder: Path) -> None:
        state = load_state(folder, self._loop.device)
        self._model.load_state_dict(state["model"])
        self._optimisers.load_state_dict(state["optimisers"])
        step, best_step, best_loss, worse = state["progress"]
        best = {name: value.cpu() for name, value in state["best"].items()}
        self._progress = Progress(step, best_step, best_loss, worse, best)


def load_state(folder: Path, device: str = "cpu") -> dict[str, Any]:
    """What a run saved last: `best` (weights by name), `progress` and what is needed to go on."""
    state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location=device, weights_only=True)
    return state
