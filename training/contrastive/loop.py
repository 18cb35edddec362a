"""The training loop of one worker: the same steps on any number of them, and after any number of kills.

`trainer` calls it. Everything a step does follows from the task, the step's number and the worker's rank: batches and
the noise of dropout are drawn from seeds made of these, the learning rate is computed from the step. So a checkpoint is
weights, optimiser and step, and going on from it gives what would have been without the kill.

Several workers split each batch. Items are gathered from all of them, and gradients averaged: without dropout they
train what one worker would, but for the hard negatives of a batch that cannot be shared evenly, which are left out. (On
a GPU sums of half precision come in no fixed order, so there the last digits differ.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.contrastive.encoder import Encoder
from training.contrastive.losses import make_loss
from training.contrastive.options import ContrastiveOptions
from training.contrastive.pairs import Batch, Batching, Pair, step_count, steps
from training.contrastive.validation import SCORE, Validation, loss_inputs
from training.errors import TrainingRefused
from training.ports import Loop
from training.precision import dtype_of

STATE_FILE = "state.pt"
LOG_EVERY = 20


@dataclass(frozen=True, slots=True)
class Material:
    """What a worker trains with. `targets`: item text -> the teacher's vector, empty without a teacher."""

    train: list[Pair]
    validation: Validation
    targets: Mapping[str, NDArray[np.float32]]
    seed: int


@dataclass(slots=True)
class _Progress:
    """Where the training stands: what a checkpoint keeps beside weights and optimiser."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    best_metrics: dict[str, float] = field(default_factory=dict)


class Worker:
    """One worker's training of `encoder`."""

    def __init__(self, encoder: Encoder, material: Material, options: ContrastiveOptions, loop: Loop) -> None:
        self._encoder, self._material, self._options, self._loop = encoder, material, options, loop
        self._how = batching(encoder, material.train, options, loop.world)
        seed, pairs = material.seed, material.train
        wanted = step_count(pairs, self._how, seed, options.accumulate, options.epochs)
        self._steps = min(wanted, options.max_steps or wanted)
        if not self._steps:
            raise TrainingRefused(
                f"{len(pairs)} pairs make no batch of {self._how.least}: each query and item may be in one only once; "
                "lower options.batch_size, collect more feedback, or add examples"
            )
        self._learning = list(encoder.learning().values())
        self._optimiser = torch.optim.AdamW(_groups(encoder, options.weight_decay), lr=options.learning_rate)
        self._dtype = dtype_of(options.precision, loop.device)
        self._scaler = torch.amp.GradScaler(enabled=self._dtype == torch.float16)
        self._loss = make_loss(encoder, options, gather=loop.world > 1)
        self._alone = make_loss(encoder, options, gather=False)
        self._progress = _Progress()

    def train(self) -> None:
        self._loop.total(self._steps)
        if saved := self._loop.restore():
            self._restore(saved)
        else:
            self._loop.report(0, self._measure())
        self._encoder.model.train()
        for step, batches in self._ahead():
            metrics = self._step(step, batches)
            last = step == self._steps
            if last or step % self._options.evaluate_every == 0:
                self._progress.step = step
                self._progress.metrics = metrics | self._measure()
                self._keep_best()
                self._loop.report(step, self._progress.metrics, self._save)
            elif step % LOG_EVERY == 0:
                self._loop.report(step, metrics)

    def _ahead(self) -> Iterator[tuple[int, list[Batch]]]:
        """(step from 1, its batches) of what is left to do."""
        options = self._options
        planned = steps(self._material.train, self._how, self._material.seed, options.accumulate)
        for step, batches in enumerate(planned, 1):
            if step > self._steps:
                return
            if step > self._progress.step:
                yield step, batches

    def _step(self, step: int, batches: list[Batch]) -> dict[str, float]:
        torch.manual_seed(step_seed(self._material.seed, step, self._loop.rank))
        rate = self._options.learning_rate * rate_at(step, self._steps, self._options.warmup_ratio)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        total = sum(self._backward(batch, len(batches)) for batch in batches)
        if not math.isfinite(total):
            raise TrainingRefused(f"the loss of step {step} is {total}: lower options.learning_rate")
        self._scaler.unscale_(self._optimiser)
        if self._loop.world > 1:
            average_gradients(self._learning, self._loop.world)
        torch.nn.utils.clip_grad_norm_(self._learning, self._options.max_grad_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return {"train_loss": total, "learning_rate": rate}

    def _backward(self, batch: Batch, batches: int) -> float:
        mine = batch.share(self._loop.rank, self._loop.world)
        pairs = [self._material.train[row] for row in mine.rows]
        columns, targets = loss_inputs(self._encoder, pairs, mine.wrongs, self._material.targets)
        with self._autocast():
            loss = self._loss(columns, targets) / batches
        self._scaler.scale(loss).backward()
        return float(loss.detach())

    def _autocast(self) -> AbstractContextManager[Any]:
        half: AbstractContextManager[Any] = torch.autocast(
            self._loop.device.partition(":")[0], self._dtype, enabled=self._dtype != torch.float32
        )
        return half

    def _measure(self) -> dict[str, float]:
        """On one worker; the others wait for it at the report."""
        if self._loop.rank:
            return {}
        with self._autocast():
            return self._material.validation.measure(self._encoder, self._alone, self._material.targets)

    def _keep_best(self) -> None:
        now, best = self._progress.metrics, self._progress.best_metrics
        judged = self._loop.rank == 0 and self._options.keep == "best" and SCORE in now
        if judged and (not best or now[SCORE] > best[SCORE]):
            self._progress.best, self._progress.best_metrics = self._encoder.state(), dict(now)

    def _save(self, folder: Path) -> None:
        state = {
            "step": self._progress.step,
            "metrics": self._progress.metrics,
            "best": self._progress.best,
            "best_metrics": self._progress.best_metrics,
            "model": self._encoder.state(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        torch.save(state, folder / STATE_FILE)

    def _restore(self, folder: Path) -> None:
        state = load_state(folder)
        self._encoder.restore(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self._progress = _Progress(state["step"], state["metrics"], state["best"], state["best_metrics"])


def load_state(folder: Path) -> dict[str, Any]:
    """What `Worker` saved. Raises TrainingRefused where it cannot be read."""
    try:
        return dict(torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise TrainingRefused(f"the checkpoint in {folder.name} cannot be read: {error}; begin a new run") from None


def chosen(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The weights that training ends with, and their metrics: the best, where they were kept."""
    if state["best"]:
        return state["best"], {**state["best_metrics"], "steps": float(state["step"])}
    return state["model"], {**state["metrics"], "steps": float(state["step"])}


def batching(encoder: Encoder, pairs: list[Pair], options: ContrastiveOptions, world: int) -> Batching:
    """Raises TrainingRefused where the workers cannot share a batch."""
    if world > 1 and (options.batch_size < 4 * world or options.batch_size % world):
        raise TrainingRefused(
            f"options.batch_size is {options.batch_size}, which {world} workers cannot share: give a multiple of "
            f"{world}, at least {4 * world}"
        )
    queries = encoder.lengths([pair.query for pair in pairs])
    texts = encoder.lengths([pair.text for pair in pairs])
    lengths = [a + b for a, b in zip(queries, texts, strict=True)]
    hard = 0 if options.method == "distill" else options.hard_negatives
    # Half a batch at least, however many workers there are: with another rule they would see other batches.
    return Batching(lengths, options.batch_size, hard, max(2, options.batch_size // 2))


def rate_at(step: int, steps_in_all: int, warmup_ratio: float) -> float:
    """Share of the learning rate in `step`, from 1: rises in a line for the warm-up, then falls in one towards 0."""
    warm = round(steps_in_all * warmup_ratio)
    if step <= warm:
        return step / warm
    return (steps_in_all - step + 1) / max(1, steps_in_all - warm)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Different for every step and worker."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def average_gradients(parameters: list[Any], world: int) -> None:
    """One exchange for all of them: a parameter without gradient has none on any worker."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _groups(encoder: Encoder, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norms are not decayed."""
    learning = encoder.learning().values()
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
