"""The figures of retrieval, ranking, probabilities and language models. Pure numpy.

`training.evaluate` takes those of rankings, `training.evidence` the others; trainers use them on their validation part.
What is a mean over cases comes as one value per case, (n,), so that two models can be compared pair by pair.

A ranking is given by its gains, (n, depth): `gains[i, r]` is what the item at rank r + 1 is worth to case i, 0 where it
is wrong or where there is none. `right` (n,) counts the right items of each case, found or not. A case without any
right item scores 0. Definitions of ranking figures are those of trec_eval (Voorhees, Harman 2005, "TREC", MIT Press).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Counts = NDArray[np.int64]

TINY = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 where their logarithm is taken."""


# ---- Rankings


def gains_of(
    rankings: Sequence[Sequence[str]], right: Sequence[Mapping[str, float] | Collection[str]], depth: int
) -> Values:
    """(n, depth): what each case's ranked ids are worth. `right` maps a right id to its gain, above 0, or just names
    the right ids, which are then worth 1. An id that is named twice counts at its first rank only."""
    gains = np.zeros((len(rankings), depth))
    for row, (ids, worth) in enumerate(zip(rankings, right, strict=True)):
        seen: set[str] = set()
        for column, item in enumerate(ids[:depth]):
            if item in worth and item not in seen:
                seen.add(item)
                gains[row, column] = worth[item] if isinstance(worth, Mapping) else 1.0
    return gains


def ideal_of(right: Sequence[Mapping[str, float] | Collection[str]], depth: int) -> Values:
    """(n, depth): the gains of the best ranking there is, for `ndcg_at_k`."""
    ideal = np.zeros((len(right), depth))
    for row, worth in enumerate(right):
        best = sorted(worth.values(), reverse=True)[:depth] if isinstance(worth, Mapping) else [1.0] * len(worth)
        ideal[row, : len(best)] = best[:depth]
    return ideal


def success_at_k(gains: Values, k: int) -> Values:
    """(n,): 1 where any of the first k items is right."""
    return np.asarray((gains[:, :k] > 0).any(axis=1), np.float64)


def recall_at_k(gains: Values, right: Counts, k: int) -> Values:
    """(n,): share of the right items that are among the first k."""
    return _share((gains[:, :k] > 0).sum(axis=1), right)


def precision_at_k(gains: Values, k: int) -> Values:
    """(n,): share of the first k places that hold a right item; a place that is empty holds none."""
    return np.asarray((gains[:, :k] > 0).sum(axis=1) / k, np.float64)


def reciprocal_rank(gains: Values, k: int) -> Values:
    """(n,): 1 / rank of the first right item, 0 beyond rank k. Its mean is MRR@k (Voorhees 1999, TREC-8)."""
    hits = gains[:, :k] > 0
    if not hits.shape[1]:
        return np.zeros(len(hits))
    return np.asarray(np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0), np.float64)


def average_precision(gains: Values, right: Counts, k: int) -> Values:
    """(n,): mean over all right items of the precision at their ranks, 0 for those beyond k. Its mean is MAP@k."""
    hits = gains[:, :k] > 0
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return _share((precision * hits).sum(axis=1), right)


def ndcg_at_k(gains: Values, ideal: Values, k: int) -> Values:
    """(n,): gains discounted by log2(rank + 1), over those of the best ranking (Jarvelin, Kekalainen 2002, TOIS 20)."""
    found, best = (np.asarray(g[:, :k] @ _discounts(min(k, g.shape[1])), np.float64) for g in (gains, ideal))
    return _share(found, best)


def _discounts(depth: int) -> Values:
    return np.asarray(1.0 / np.log2(np.arange(2, depth + 2)), np.float64)


def _share(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Values:
    out = np.zeros(len(part))
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out


# ---- Labels and scores


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """The weighted share of pairs (one right, one wrong) in which the right one scores higher; equal scores count half
    (Hanley, McNeil 1982, Radiology 143).

    `labels` 0 or 1 and `scores` (n,), `weights` (n,) or (b, n). Returns () or (b,); NaN where one label is missing."""
    y, s = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if not len(y):
        return np.full(w.shape[:-1], np.nan)
    order = np.argsort(s, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(s[order]) != 0])
    sorted_weights = w[..., order]
    right = np.add.reduceat(sorted_weights * y[order], starts, axis=-1)
    wrong = np.add.reduceat(sorted_weights, starts, axis=-1) - right
    below = np.cumsum(wrong, axis=-1) - wrong / 2
    pairs = right.sum(axis=-1) * wrong.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (right * below).sum(axis=-1) / pairs, np.nan)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> Values:
    """(n,): minus the natural logarithm of the probability given to what came true."""
    y = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY)
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log1p(-p)), np.float64)


def equal_mass_bins(probabilities: ArrayLike, bins: int = 10) -> NDArray[np.int64]:
    """(n,): the bin, 0..bins-1, of each case: bins hold equally many cases, but equal probabilities stay together."""
    p = np.asarray(probabilities, np.float64)
    _, first, inverse = np.unique(np.sort(p), return_index=True, return_inverse=True)
    bin_of_sorted = first[inverse] * bins // max(len(p), 1)
    out = np.empty(len(p), np.int64)
    out[np.argsort(p, kind="stable")] = bin_of_sorted
    return out


def calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None, bins: int = 10
) -> Values:
    """Expected calibration error: how far, on average, the probability of a bin lies from the share of its cases that
    came true (Naeini, Cooper, Hauskrecht 2015, AAAI), with bins of equal mass (Nixon et al. 2019, arXiv 1904.01685).

    `weights` (n,) or (b, n), which do not move the bins. Returns () or (b,); NaN where nothing weighs anything."""
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    member = np.eye(bins)[equal_mass_bins(p, bins)]
    gaps = np.abs((w * (p - y)) @ member).sum(axis=-1)
    mass = w.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass > 0, gaps / mass, np.nan)


class Bin(NamedTuple):
    """One row of a reliability diagram."""

    cases: int
    weight: float
    predicted: float
    """Mean probability, 0..1."""
    observed: float
    """Share that came true, 0..1."""


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None, bins: int = 10
) -> list[Bin]:
    """A row per bin that holds any weight, from the lowest probability up."""
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    bin_of = equal_mass_bins(p, bins)
    rows = []
    for number in range(bins):
        rows_in = bin_of == number
        if (mass := float(w[rows_in].sum())) > 0:
            means = (float(w[rows_in] @ x[rows_in]) / mass for x in (p, y))
            rows.append(Bin(int(rows_in.sum()), mass, *means))
    return rows


# ---- Language models


def perplexity(log_likelihoods: ArrayLike, tokens: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """exp of the mean negative log-likelihood (natural logarithm) of a token. `log_likelihoods` (n,) are sums over the
    `tokens` (n,) of each case, `weights` (n,) or (b, n). Returns () or (b,); NaN without any token."""
    ll, count = np.asarray(log_likelihoods, np.float64), np.asarray(tokens, np.float64)
    w = np.ones(len(ll)) if weights is None else np.asarray(weights, np.float64)
    total = np.asarray(w @ count, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.where(total > 0, np.exp(-(w @ ll) / total), np.nan)
