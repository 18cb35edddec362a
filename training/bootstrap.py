"""How sure a difference between two models on the same cases is: the paired bootstrap (Efron, Tibshirani 1993).

`training.gates` calls it. Cases are drawn with replacement, both models keep the same draw, and the interval is that of
the percentiles of the difference. Percentiles rather than BCa (Efron 1987, JASA 82): paired differences are nearly
symmetric, so its corrections are small; its acceleration needs n leave-one-out figures, n * n work for an AUC; and its
bias correction jumps where, as with most metrics of retrieval, differences take only a few values.

Percentiles are too narrow where cases are few: three cases won of three would give an interval of [1, 1]. The interval
of means therefore imagines two cases more, one won and one lost by as much as any case was (the bootstrap's counterpart
of adding pairs as in Agresti, Min 2005, Statistics in Medicine 24). Their weight vanishes as cases grow, and where no
case differs at all they add nothing: the interval is then exactly [0, 0].
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.metrics import Counts, Values

RESAMPLES = 4000
FIGURE_RESAMPLES = 2000
"""A figure such as AUC is made anew of each draw, which takes longer than a mean."""
CHUNK = 1_000_000
"""Numbers drawn at a time, to bound memory."""

Difference = Callable[[Counts], Values]
"""How often each case was drawn, (b, n), to the difference of the two figures, (b,); NaN where there is none."""


class Interval(NamedTuple):
    low: float
    high: float


def generator(seed: int, *names: str) -> np.random.Generator:
    """The same numbers for the same seed and names, whatever else is drawn and in whichever order."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def mean_interval(
    differences: Values, level: float, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Interval | None:
    """Of the mean of `differences` (n,), one per case. None without cases. One case gives an interval around 0: alone
    it proves nothing."""
    if not len(differences):
        return None
    most = float(np.abs(differences).max())
    if most == 0.0:
        return Interval(0.0, 0.0)
    padded = np.append(differences, [most, -most])
    means = [padded[draw].mean(axis=1) for draw in _draws(len(padded), resamples, rng)]
    return _percentiles(np.concatenate(means), level)


def figure_interval(
    difference: Difference, cases: int, level: float, rng: np.random.Generator, resamples: int = FIGURE_RESAMPLES
) -> Interval | None:
    """Of a figure that is no mean over cases, such as AUC. Draws for which there is no figure (one label missing) are
    left out; None where that is more than half of them, or where there are no cases."""
    if not cases:
        return None
    found = [difference(_counts(draw, cases)) for draw in _draws(cases, resamples, rng)]
    known = np.concatenate(found)
    known = known[np.isfinite(known)]
    return _percentiles(known, level) if 2 * len(known) >= resamples else None


def _draws(cases: int, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    at_once = max(1, CHUNK // cases)
    for start in range(0, resamples, at_once):
        yield rng.integers(cases, size=(min(at_once, resamples - start), cases))


def _counts(draw: NDArray[np.int64], cases: int) -> Counts:
    shifted = draw + np.arange(len(draw))[:, None] * cases
    return np.bincount(shifted.ravel(), minlength=len(draw) * cases).reshape(len(draw), cases)


def _percentiles(figures: Values, level: float) -> Interval:
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
