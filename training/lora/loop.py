"""The training loop of one worker: the same steps on any number of them, and after any number of kills.

`trainer` calls it. What a step does follows from the task, the step's number and the worker's rank. Several workers
split each batch and the validation; the loss is the mean over the answer tokens of the whole batch, whoever has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.errors import TrainingRefused
from training.lora.model import adapter_weights, set_adapter_weights
from training.lora.options import LoraOptions
from training.lora.tokens import Tokens, batches
from training.ports import OBJECTIVE, Loop

STATE_FILE = "state.pt"
LOG_EVERY = 10
LEAST_GAIN_RATIO = 1e-3
"""A validation that is better by less than this share counts as one without a gain."""


@dataclass(frozen=True, slots=True)
class Material:
    train: Sequence[Tokens]
    validation: Sequence[Tokens]
    seed: int


@dataclass(slots=True)
class _Progress:
    """Where training stands; `perplexity_before` is that of the validation part before the first step, `poor` the
    validations since the best one."""

    step: int = 0
    perplexity_before: float = 0.0
    perplexity: float = float("inf")
    best_step: int = 0
    poor: int = 0
    best: dict[str, Any] = field(default_factory=dict)


class Worker:
    """One worker's training of the adapter in `model`."""

    def __init__(self, model: Any, material: Material, options: LoraOptions, loop: Loop) -> None:
        self._model, self._material, self._options, self._loop = model, material, options, loop
        self._lengths = [len(tokens.ids) for tokens in material.train]
        per_epoch = -(-len(material.train) // options.batch_size)
        self._steps = min(per_epoch * options.epochs, options.max_steps or per_epoch * options.epochs)
        self._learning = [p for p in model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self._learning, lr=options.learning_rate, weight_decay=options.weight_decay)
        self._progress = _Progress()

    def train(self, config: dict[str, Any]) -> None:
        """`config` is kept beside the weights, so that the component can be written without the base."""
        self._loop.total(self._steps)
        if saved := self._loop.restore():
            self._restore(saved)
        else:
            self._progress.perplexity_before = self._progress.perplexity = self._measure()
            self._progress.best = adapter_weights(self._model)
            self._loop.report(0, _told(self._progress.perplexity), lambda at: self._save(at, config))
        for step, rows in self._ahead():
            if self._progress.poor >= self._options.patience:
                return
            loss = self._step(step, rows)
            if step == self._steps or step % self._options.evaluate_every == 0:
                perplexity = self._measure()
                self._keep(step, perplexity)
                metrics = {"train_loss": loss, **_told(perplexity)}
                self._loop.report(step, metrics, lambda at: self._save(at, config))
            elif step % LOG_EVERY == 0:
                self._loop.report(step, {"train_loss": loss})

    def _ahead(self) -> Iterator[tuple[int, list[int]]]:
        """(step from 1, the rows of its batch) of what is left to do."""
        step = 0
        for epoch in range(self._options.epochs):
            for rows in batches(self._lengths, self._options.batch_size, self._material.seed, epoch):
                step += 1
                if step > self._steps:
                    return
                if step > self._progress.step:
                    yield step, rows

    def _step(self, step: int, rows: list[int]) -> float:
        """One optimiser step; the mean weighted loss of the batch's answer tokens."""
        torch.manual_seed((self._material.seed * 1_000_003 + step) * 1_009 + self._loop.rank)
        self._model.train()
        for group in self._optimiser.param_groups:
            group["lr"] = self._options.learning_rate * _rate(step, self._steps, self._options.warmup_ratio)
        self._optimiser.zero_grad(set_to_none=False)
        mine = [self._material.train[row] for row in rows[self._loop.rank :: self._loop.world]]
        total = 0.0
        for some in _chunks(mine, self._options.mini_batch_size):
            losses, weights = token_losses(self._model, some, self._loop.device)
            loss = (losses * weights).sum()
            loss.backward()
            total += float(loss.detach())
        # The batch's weights are known to every worker: gradients are sums, divided once.
        mass = sum(t.weight * t.learned for t in (self._material.train[row] for row in rows))
        total = self._sum_over_workers(total, mass)
        torch.nn.utils.clip_grad_norm_(self._learning, self._options.max_grad_norm)
        self._optimiser.step()
        return total

    def _sum_over_workers(self, total: float, mass: float) -> float:
        for parameter in self._learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= mass
        if self._loop.world == 1:
            return total / mass
        flat = torch.cat([p.grad.reshape(-1).float() for p in self._learning])
        flat = torch.cat([flat, flat.new_tensor([total / mass])])
        torch.distributed.all_reduce(flat)
        sizes = [p.numel() for p in self._learning]
        for parameter, part in zip(self._learning, flat[:-1].split(sizes), strict=True):
            parameter.grad.copy_(part.view_as(parameter))
        return float(flat[-1])

    def _measure(self) -> float:
        """Perplexity of the validation part, the same for every worker."""
        mine = self._material.validation[self._loop.rank :: self._loop.world]
        told = log_likelihoods(self._model, mine, self._options.mini_batch_size, self._loop.device)
        sums = torch.tensor([sum(told), sum(t.learned for t in mine)], dtype=torch.float64)
        if self._loop.world > 1:
            sums = sums.to(self._loop.device)
            torch.distributed.all_reduce(sums)
        return float(torch.exp(-sums[0] / sums[1]))

    def _keep(self, step: int, perplexity: float) -> None:
        progress = self._progress
        progress.step = step
        gained = perplexity < progress.perplexity * (1 - LEAST_GAIN_RATIO)
        progress.poor = 0 if gained else progress.poor + 1
        if perplexity < progress.perplexity:
            progress.perplexity, progress.best_step = perplexity, step
            progress.best = adapter_weights(self._model)

    def _save(self, folder: Path, config: dict[str, Any]) -> None:
        state = {
            "progress": asdict(self._progress),
            "config": config,
            "weights": adapter_weights(self._model),
            "optimiser": self._optimiser.state_dict(),
        }
        torch.save(state, folder / STATE_FILE)

    def _restore(self, folder: Path) -> None:
        state = load_state(folder)
        set_adapter_weights(self._model, state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._progress = _Progress(**state["progress"])


def load_state(folder: Path) -> dict[str, Any]:
    """What `Worker` saved. Raises TrainingRefused where it cannot be read."""
    try:
        return dict(torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise TrainingRefused(f"the checkpoint in {folder.name} cannot be read: {error}; begin a new run") from None


def token_losses(model: Any, some: Sequence[Tokens], device: str) -> tuple[Any, Any]:
    """(answer tokens,) twice: minus the natural log-likelihood of each, and the weight of its example."""
    width = max(len(tokens.ids) for tokens in some)
    ids = torch.zeros((len(some), width), dtype=torch.long)
    there = torch.zeros((len(some), width), dtype=torch.long)
    weights = torch.zeros((len(some), width))
    for row, tokens in enumerate(some):
        ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
        there[row, : len(tokens.ids)] = 1
        weights[row, tokens.answer_at : len(tokens.ids)] = tokens.weight
    ids, there, weights = ids.to(device), there.to(device), weights.to(device)
    logits = model(input_ids=ids, attention_mask=there).logits
    learned = weights[:, 1:] > 0
    # Only the answers' logits are made float32: of a large vocabulary the rest would fill the memory.
    losses = torch.nn.functional.cross_entropy(logits[:, :-1][learned].float(), ids[:, 1:][learned], reduction="none")
    return losses, weights[:, 1:][learned]


def log_likelihoods(model: Any, examples: Sequence[Tokens], size: int, device: str) -> list[float]:
    """The natural log-likelihood of each example's answer, in the order given."""
    model.eval()
    found = [0.0] * len(examples)
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].ids))
    with torch.no_grad():
        for rows in _chunks(order, size):
            losses, _ = token_losses(model, [examples[row] for row in rows], device)
            counts = [examples[row].learned for row in rows]
            for row, part in zip(rows, losses.double().cpu().split(counts), strict=True):
                found[row] = -float(part.sum())
    return found


def _rate(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the learning rate in `step`, from 1: rises in a line for the warm-up, then falls in one towards 0."""
    warm = round(steps * warmup_ratio)
    return step / warm if step <= warm else (steps - step + 1) / max(1, steps - warm)


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _told(perplexity: float) -> dict[str, float]:
    return {"perplexity": perplexity, OBJECTIVE: math.log(perplexity)}
