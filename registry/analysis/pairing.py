"""What comes before judging: the i-th canary request meets the i-th control request, and past control requests give
the thresholds of latency. Called by `registry.analysis.analysis`; left folds over the streams, so that the size of the
chunks they arrive in makes no difference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.analysis.betting import Values
from registry.traffic import TrialArm


class Pairing:
    """Pairs two streams in their order; the longer one's remainder waits."""

    def __init__(self) -> None:
        self._waiting: dict[TrialArm, npt.NDArray[Any]] = {}

    def add(self, arm: TrialArm, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """(canary's, control's) of the pairs that this completes, of equal length."""
        other: TrialArm = "control" if arm == "canary" else "canary"
        mine = np.concatenate((self._waiting.get(arm, values[:0]), values))
        theirs = self._waiting.get(other, values[:0])
        pairs = min(len(mine), len(theirs))
        self._waiting = {arm: mine[pairs:].copy(), other: theirs[pairs:].copy()}
        return (mine[:pairs], theirs[:pairs]) if arm == "canary" else (theirs[:pairs], mine[:pairs])

    def keep(self, newest: int) -> None:
        """Of the arm that is ahead, forget all that wait but the newest."""
        self._waiting = {arm: values[max(0, len(values) - newest) :] for arm, values in self._waiting.items()}


class RunningQuantiles:
    """Quantiles of the control's last `WINDOW` latencies, read afresh every `REFRESH`: known before each pair."""

    WINDOW = 1024
    REFRESH = 16

    def __init__(self, quantiles: tuple[float, ...]) -> None:
        self._quantiles = quantiles
        self._recent: Values = np.empty(0)
        self._seen = 0
        self._now = np.full(len(quantiles), np.nan)

    def before(self, latencies_ms: Values) -> Values:
        """Adds them; for each the quantiles of those before it, shape (n, quantiles), NaN while there are too few:
        below 1 / (1 - quantile)."""
        history = np.concatenate((self._recent, latencies_ms))
        known = np.empty((len(latencies_ms), len(self._quantiles)))
        done, start = 0, len(self._recent)
        while done < len(latencies_ms):
            if self._seen % self.REFRESH == 0:
                self._now = self._read(history[max(0, start + done - self.WINDOW) : start + done])
            take = min(self.REFRESH - self._seen % self.REFRESH, len(latencies_ms) - done)
            known[done : done + take] = self._now
            done += take
            self._seen += take
        self._recent = history[-self.WINDOW :]
        return known

    def _read(self, window: Values) -> Values:
        enough = [len(window) * (1 - q) >= 1 - 1e-9 for q in self._quantiles]
        ranks = [max(0, math.ceil(q * len(window) - 1e-9) - 1) for q in self._quantiles]
        if not any(enough):
            return np.full(len(ranks), np.nan)
        return np.where(enough, np.partition(window, ranks)[ranks], np.nan)
