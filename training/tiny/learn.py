"""The tiny model's training: one process, a fixed number of steps, a checkpoint every now and then.

`training.tiny.build` calls it. What a step does follows from the seed and its number, so a build that was killed goes
on where its checkpoint is and ends where it would have ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from training.lora.tokens import Tokens, batches

BATCH = 8
LEARNING_RATE = 3e-3
WARMUP = 60
WEIGHT_DECAY = 0.05
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Plan:
    """`key` says what is trained on what: a checkpoint of another key is not gone on with."""

    steps: int
    seed: int
    key: str
    checkpoint: Path
    checkpoint_every_s: float = 30.0


def learn(model: Any, lessons: Sequence[Tokens], plan: Plan, told: Callable[[int, float], None]) -> float:
    """Train `model` in place; `told` hears (steps done, loss). Returns the mean loss of the last hundred steps."""
    optimiser = torch.optim.AdamW(_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.95))
    begun, recent = _restore(model, optimiser, plan)
    model.train()
    saved = time.monotonic()
    for step, rows in enumerate(_rows(lessons, plan), 1):
        if step <= begun:
            continue
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, plan.steps)
        loss = _loss(model, [lessons[row] for row in rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        recent = [*recent[-99:], float(loss.detach())]
        told(step, recent[-1])
        if time.monotonic() - saved > plan.checkpoint_every_s:
            _save(model, optimiser, plan, step, recent)
            saved = time.monotonic()
    plan.checkpoint.unlink(missing_ok=True)
    model.eval()
    return sum(recent) / len(recent)


def fast_halves() -> bool:
    """Whether this CPU multiplies in bfloat16: then the matrices are, and the weights stay in float32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _groups(model: Any) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    return [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, step / min(WARMUP, steps))
    return warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)


def _rows(lessons: Sequence[Tokens], plan: Plan) -> Iterator[list[int]]:
    lengths, done, epoch = [len(one.ids) for one in lessons], 0, 0
    while True:
        for rows in batches(lengths, BATCH, plan.seed, epoch):
            if done == plan.steps:
                return
            done += 1
            yield rows
        epoch += 1


def _loss(model: Any, rows: Sequence[Tokens]) -> Any:
    """Mean over the tokens of the answers; only there the output layer is computed."""
    longest = max(len(one.ids) for one in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORED)
    for at, one in enumerate(rows):
        ids[at, : len(one.ids)] = torch.tensor(one.ids)
        targets[at, one.answer_at - 1 : len(one.ids) - 1] = torch.tensor(one.ids[one.answer_at :])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_halves()):
        hidden = model.model(
            input_ids=ids, use_cache=False
        ).last_hidden_state  # padding is at the end: causality hides it
        learnt = targets != IGNORED
        logits = model.lm_head(hidden[learnt])
    return functional.cross_entropy(logits.float(), targets[learnt])


def _save(model: Any, optimiser: Any, plan: Plan, step: int, recent: list[float]) -> None:
    aside = plan.checkpoint.with_suffix(".new")
    state = {"key": plan.key, "step": step, "recent": recent, "model": model.state_dict()}
    torch.save({**state, "optimiser": optimiser.state_dict()}, aside)
    aside.replace(plan.checkpoint)


def _restore(model: Any, optimiser: Any, plan: Plan) -> tuple[int, list[float]]:
    if not plan.checkpoint.is_file():
        return 0, []
    state = torch.load(plan.checkpoint, weights_only=True)
    if state["key"] != plan.key:
        return 0, []
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), list(state["recent"])
