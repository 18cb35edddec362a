"""Limits for what people are shown: of a share, a quantile, a mean, each valid at all times together.

`registry.analysis.guards` puts them beside its estimates. They decide nothing: guards pass and fail by
`registry.analysis.betting`, whose paired comparison is sharper than two limits side by side. Under drift they speak of
the average over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from registry.analysis.betting import Values

PRIOR = 0.5
"""Both parameters of the beta prior of the mixture."""


def share_limits(ones: int, requests: int, miss_ratio: float) -> tuple[float, float]:
    """Limits 0..1 of a Bernoulli share, outside which the true one ever lies with probability at most `miss_ratio`.

    The beta-binomial mixture (Robbins 1970; Howard et al., arXiv 1810.08240, section 3): shares p at which the
    likelihood ratio of the Beta(1/2, 1/2) mixture to p is below 1 / miss_ratio.
    """
    if requests == 0:
        return 0.0, 1.0
    mixed = _log_mixture(ones, requests) + math.log(miss_ratio)
    seen = ones / requests

    def kept(p: float) -> bool:
        return mixed < _log_likelihood(ones, requests, p)

    return _edge(kept, seen, 0.0), _edge(kept, seen, 1.0)


def _edge(kept: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `kept` ends on the way from `inside`, where it holds, to `outside`; the last point found not kept."""
    if kept(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        if kept(middle):
            inside = middle
        else:
            outside = middle
    return outside


def quantile_ranks(requests: int, quantile: float, miss_ratio: float) -> tuple[int, int]:
    """Ranks (from 1) of the order statistics between which the true quantile stays; 0 and requests + 1: no limit.

    The same mixture at p = quantile: how many observations lie below the true quantile is a sum of Bernoulli(quantile),
    so counts that the mixture refutes cannot be it (Howard, Ramdas, arXiv 1906.09712, for one fixed quantile).
    """
    refuted_at = -math.log(miss_ratio)

    def kept(count: int) -> bool:
        ratio = _log_mixture(count, requests) - _log_likelihood(count, requests, quantile)
        return ratio < refuted_at

    centre = min(requests, round(quantile * requests))
    low, high = _last_kept(kept, centre, 0), _last_kept(kept, centre, requests)
    return low, high + 1


def _last_kept(kept: Callable[[int], bool], inside: int, outside: int) -> int:
    if kept(outside):
        return outside
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        if kept(middle):
            inside = middle
        else:
            outside = middle
    return inside


class Sketch:
    """Counts of latencies in bins half a percent apart, in constant memory: a quantile is read to within 0.25 %.

    The idea of DDSketch (Masson, Rim, Lee, arXiv 1908.10693). Bins reach from a microsecond to three hours.
    """

    STEP = math.log(1.005)
    LOWEST_MS = 1e-3
    BINS = int(math.log(1e10) / STEP) + 1

    def __init__(self) -> None:
        self.total = 0
        self._counts = np.zeros(self.BINS, dtype=np.int64)

    def add(self, latencies_ms: Values) -> None:
        places = np.log(np.maximum(latencies_ms, self.LOWEST_MS) / self.LOWEST_MS) / self.STEP
        np.add.at(self._counts, np.minimum(places.astype(np.int64), self.BINS - 1), 1)
        self.total += len(latencies_ms)

    def quantile(self, quantile: float, miss_ratio: float) -> tuple[float | None, float | None, float | None]:
        """(estimate, lower limit, upper limit) in ms; None for what is not known."""
        if not self.total:
            return None, None, None
        up_to = np.cumsum(self._counts)
        low, high = quantile_ranks(self.total, quantile, miss_ratio)
        return (
            self._edge(up_to, max(1, math.ceil(quantile * self.total)), 0.5),
            self._edge(up_to, low, 0.0) if low >= 1 else None,
            self._edge(up_to, high, 1.0) if high <= self.total else None,
        )

    def _edge(self, up_to: npt.NDArray[np.int64], rank: int, part: float) -> float:
        place = int(np.searchsorted(up_to, rank))
        return self.LOWEST_MS * math.exp((place + part) * self.STEP)


class MeanLimits:
    """Limits of the mean of values in [lowest, highest], in constant memory: the predictable plug-in
    empirical-Bernstein confidence sequence (Waudby-Smith, Ramdas, arXiv 2010.09686, theorem 2)."""

    LARGEST_BET = 0.5

    def __init__(self, lowest: float, highest: float, miss_ratio: float) -> None:
        self.count = 0
        self._lowest, self._span = lowest, highest - lowest
        self._log = math.log(2 / miss_ratio)
        self._sum = self._squares = self._bets = self._weighted = self._spent = 0.0

    def add(self, values: Values) -> None:
        if not len(values):
            return
        x = (values - self._lowest) / self._span
        at = self.count + np.arange(1, len(x) + 1)
        sums = self._sum + np.cumsum(x)
        means = (0.5 + sums) / (at + 1)
        means_before = np.concatenate(([(0.5 + self._sum) / (self.count + 1)], means[:-1]))
        squares = self._squares + np.cumsum((x - means) ** 2)
        squares_before = np.concatenate(([self._squares], squares[:-1]))
        variance = (0.25 + squares_before) / at
        bets = np.minimum(np.sqrt(2 * self._log / (variance * at * np.log1p(at))), self.LARGEST_BET)
        self._spent += float(((x - means_before) ** 2 * (-np.log1p(-bets) - bets)).sum())
        self._bets += float(bets.sum())
        self._weighted += float((bets * x).sum())
        self.count, self._sum, self._squares = int(at[-1]), float(sums[-1]), float(squares[-1])

    @property
    def mean(self) -> float | None:
        return self._lowest + self._span * self._sum / self.count if self.count else None

    def limits(self) -> tuple[float, float]:
        if not self.count:
            return self._lowest, self._lowest + self._span
        centre, wide = self._weighted / self._bets, (self._log + self._spent) / self._bets
        low, high = max(0.0, centre - wide), min(1.0, centre + wide)
        return self._lowest + self._span * low, self._lowest + self._span * high


def _log_mixture(ones: int, requests: int) -> float:
    """Log probability of one sequence with that many ones, the share drawn from the prior."""
    return _log_beta(ones + PRIOR, requests - ones + PRIOR) - _log_beta(PRIOR, PRIOR)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_likelihood(ones: int, requests: int, p: float) -> float:
    zeros = requests - ones
    if (ones and p <= 0) or (zeros and p >= 1):
        return -math.inf
    return (ones * math.log(p) if ones else 0.0) + (zeros * math.log1p(-p) if zeros else 0.0)
