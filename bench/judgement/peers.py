"""What other systems make of the same streams, for `bench.judgement.simulate`. Written from their documented rules.

They see a point a minute: the share of failures, the p95 of latency and the mean reward of the `WINDOW` requests that
a step of 1 % of 50 requests/s sends to each arm in a minute. (More traffic would only cost them more requests.)

- Flagger (its documented example): each minute's success rate must be at least 99 %, and latency and reward within
  limits; `threshold` failed checks, counted over the whole analysis, roll back: 10.
- Argo Rollouts: the success rate must be at least 95 % (its documented example). With its example's settings, a
  measurement every 5 minutes and failureLimit 3; and with the field's default, failureLimit 0, measured each minute.
- Kayenta: Mann-Whitney on the points so far, every 10 minutes, tolerance 0.25 of the Hodges-Lehmann estimate and
  confidence 0.98; one metric classified as worse fails the canary (every metric critical).

Flagger and Argo compare with fixed limits, not with a control. Only that of the success rate is theirs; the limits of
latency and reward are given to them as their best case: as tight as leaves 1 % of false rollbacks in quiet streams (or
half a percent more than the success rate alone makes), which no operator knows as exactly (`calibrate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.judgement.streams import ArmStream

Array = npt.NDArray[Any]

WINDOW = 30
"""Requests of each arm in a minute."""
FALSE_ROLLBACKS = 0.01
MISSED_BY_CHANCE = tuple(float(q) for q in np.geomspace(0.2, 1e-6, 60))
"""Shares of quiet windows that may miss a limit, tried in turn."""
KAYENTA_EVERY, KAYENTA_TOLERANCE, KAYENTA_Z = 10, 0.25, 2.3263478740408408
"""Minutes; share; the normal quantile of a two-sided confidence of 0.98."""


@dataclass(frozen=True)
class Points:
    """One arm, a point per window, shape (windows,) each."""

    error: Array
    p95_ms: Array
    reward: Array


def points_of(arm: ArmStream, window: int = WINDOW) -> Points:
    """Requests beyond the last whole window are left out."""
    windows = len(arm.outcomes) // window
    size = windows * window
    failed = (arm.outcomes[:size] == ord("e")).reshape(windows, window)
    rank = int(np.ceil(0.95 * window)) - 1
    latencies = np.partition(arm.latencies_ms[:size].reshape(windows, window), rank, axis=1)
    return Points(failed.mean(axis=1), latencies[:, rank], arm.rewards[:size].reshape(windows, window).mean(axis=1))


@dataclass(frozen=True)
class FixedLimits:
    """A canary is rolled back at the check at which one metric has missed its limit `failures` times."""

    name: str
    title: str
    minutes: int
    success: float
    failures: int
    together: bool
    """A check that misses any limit counts once (Flagger); else each metric counts its own (Argo)."""
    p95_ms: float = float("inf")
    reward: float = float("-inf")

    @property
    def window(self) -> int:
        return self.minutes * WINDOW

    def found_after(self, canary: ArmStream) -> int | None:
        """Canary requests until the rollback; None: there is none."""
        return self._found_in(points_of(canary, self.window))

    def _found_in(self, seen: Points) -> int | None:
        missed = np.array([seen.error > 1 - self.success + 1e-9, seen.p95_ms > self.p95_ms, seen.reward < self.reward])
        counts = np.cumsum(missed.any(axis=0, keepdims=True) if self.together else missed, axis=1)
        hits = np.flatnonzero((counts >= self.failures).any(axis=0))
        return (int(hits[0]) + 1) * self.window if len(hits) else None

    def calibrate(self, quiet: Sequence[ArmStream]) -> FixedLimits:
        """With the tightest limits of latency and reward under which it rolls back few of the quiet canaries."""
        seen = [points_of(arm, self.window) for arm in quiet]
        all_p95_ms, all_rewards = (np.concatenate([getattr(p, f) for p in seen]) for f in ("p95_ms", "reward"))

        def false_ratio(peer: FixedLimits) -> float:
            return sum(peer._found_in(points) is not None for points in seen) / len(seen)

        allowed = max(FALSE_ROLLBACKS, false_ratio(self) + FALSE_ROLLBACKS / 2)
        for missed in MISSED_BY_CHANCE:
            p95_ms, reward = float(np.quantile(all_p95_ms, 1 - missed)), float(np.quantile(all_rewards, missed))
            if false_ratio(peer := replace(self, p95_ms=p95_ms, reward=reward)) <= allowed:
                return peer
        return self


FIXED = (
    FixedLimits("flagger", "Flagger, 10 failed checks of 1 min", 1, 0.99, 10, True),
    FixedLimits("argo-example", "Argo Rollouts, every 5 min, failureLimit 3", 5, 0.95, 4, False),
    FixedLimits("argo-default", "Argo Rollouts, every min, failureLimit 0", 1, 0.95, 1, False),
)
KAYENTA = "kayenta"
TITLES = {peer.name: peer.title for peer in FIXED} | {KAYENTA: "Kayenta, Mann-Whitney every 10 min"}


def kayenta_found_after(canary: ArmStream, control: ArmStream) -> int | None:
    mine, theirs = points_of(canary), points_of(control)
    for points in range(KAYENTA_EVERY, len(mine.error) + 1, KAYENTA_EVERY):
        for ours, others in ((mine.error, theirs.error), (mine.p95_ms, theirs.p95_ms), (-mine.reward, -theirs.reward)):
            if mann_whitney_is_higher(ours[:points], others[:points]):
                return points * WINDOW
    return None


def mann_whitney_is_higher(canary: Array, control: Array) -> bool:
    """The lower end of the Wilcoxon interval of the shift lies above the tolerance (the large-sample interval)."""
    n, m = len(canary), len(control)
    rank = int(n * m / 2 - KAYENTA_Z * np.sqrt(n * m * (n + m + 1) / 12))
    if rank < 1:
        return False
    shifts = np.subtract.outer(canary, control).ravel()
    middle = (n * m - 1) // 2
    low, estimate = np.partition(shifts, (rank - 1, middle))[[rank - 1, middle]]
    return bool(low > KAYENTA_TOLERANCE * abs(estimate))
