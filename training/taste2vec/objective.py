"""What Taste2Vec minimises, as differences of angles: only directions live on the unit sphere.

A target of the seed's kind, the own vector times 1.1, is the same direction: after normalisation there is nothing to
learn from it, and a squared error against oneself has no gradient that tells better from worse. So a record is pulled
towards what was liked and pushed from what was disliked, always relative to other items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """`temperature` of the softmax; `push` weighs what was turned down, beyond a cosine of `margin`."""

    temperature: float
    push: float
    margin: float


def pull(queries: Tensor, items: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in both directions, with soft targets.

    `queries` (n, d) and `items` (m, d) are unit rows; `targets` (n, m), rows that sum to 1: the item of the query and,
    with less, those that its user likes; `weights` (n,).
    """
    logits = queries @ items.T / temperature
    forward = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
    shares = weights[:, None] * targets
    backward = -(shares * F.log_softmax(logits, dim=0)).sum()
    total = weights.sum().clamp(min=1e-9)
    return ((weights * forward).sum() + backward) / (2 * total)


def push(queries: Tensor, items: Tensor, weights: Tensor, margin: float) -> Tensor:
    """Of pairs (n, d) and (n, d) that were turned down: their cosine, where it is above `margin`. It ends there, so
    that a thousand rejections do not throw an item out of its neighbourhood."""
    cosines = (queries * items).sum(dim=1)
    return (weights * F.relu(cosines - margin)).sum() / weights.sum().clamp(min=1e-9)


def resemble(items: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """How far the neighbourhoods of unit rows (n, d) are from those that were measured: `targets` (n, n), rows that sum
    to 1, or to 0 where nothing was measured, with a diagonal of zeros. Neighbourhoods as probabilities: stochastic
    neighbour embedding (Hinton & Roweis 2002)."""
    logits = (items @ items.T / temperature).masked_fill(
        torch.eye(len(items), dtype=torch.bool, device=items.device), -1e9
    )
    told = targets.sum(dim=1)
    return -(targets * F.log_softmax(logits, dim=1)).sum() / told.sum().clamp(min=1e-9)


def drift(now: Tensor, before: Tensor) -> Tensor:
    """1 - the mean cosine of unit rows and the same rows by the encoder that the update began with (learning without
    forgetting: Li & Hoiem 2016, arXiv 1606.09282)."""
    return 1 - (now * before).sum(dim=1).mean()


def drop_parts(inputs: tuple[Any, ...], ratio: float, generator: torch.Generator) -> tuple[Any, ...]:
    """Rows without their text, words, metrics or context, each at random, so that the encoder learns to do without.
    At least one of the four stays."""
    text, senses, metrics, there, context, moments = inputs
    draw = torch.rand(len(text), 4, generator=generator).to(text.device)
    has = torch.stack([part.flatten(1).ne(0).any(dim=1) for part in (text, senses, there, moments)], dim=1)
    kept = (draw >= ratio) & has
    kept = torch.where(kept.any(dim=1, keepdim=True), kept, has).float()
    t, s, m, c = kept.unbind(dim=1)
    return (
        text * t[:, None], senses * s[:, None], metrics * m[:, None], there * m[:, None], context, moments * c[:, None]
    )  # fmt: skip
