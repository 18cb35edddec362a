"""The test behind every guard: betting, pair after pair, against the claim that a bounded difference is not above 0.

`registry.analysis.guards` turns what two paired requests did into one number d in [lowest, highest] whose mean, under
the claim, is at most 0 given everything before. A bet of b < 1 / -lowest multiplies the wealth by 1 + b d, which is
positive and whose mean is then at most 1: the wealth is a test supermartingale (an e-process), and by Ville's
inequality it ever reaches 1 / a with probability at most a, however often one looks. Nothing else is assumed: the two
arms may drift together, the difference may change from pair to pair, and the margin may be crossed late.

One such bet on the difference of two Bernoulli streams in blocks of (1, 1) grows within a few percent of the best
e-process there is for it (Turner, Ly, Grunwald, arXiv 2106.02693: the likelihood ratio against the projection onto the
claim), and needs no guess at either rate: where failures are rare, each canary failure doubles the wealth, and no valid
test of equal shares can do better from one pair. For means in a range it is the method of Waudby-Smith, Ramdas (arXiv
2010.09686).

The bets are mixed: the wealth is an average over a fixed grid of them (the method of mixtures, ibid. section 4.3).
A tenth of the wealth is kept back and staked afresh, a piece every `SEGMENT` pairs, so that a canary which breaks late
is found although the early bets have lost by then (a mixture over starting times; the wealth stays an average of
e-processes).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

SEGMENT = 128
KEPT_BACK = 0.1

FRACTIONS = (0.98, 0.9, 0.75, 0.5, 0.3, 0.16, 0.08, 0.04, 0.02, 0.01, 0.005)
"""Bets, as shares of the largest allowed."""
RARE = (0.70, 0.12, 0.06, 0.04, 0.03, 0.02, 0.01, 0.008, 0.006, 0.004, 0.002)
"""Their weights where the control hardly ever has a 1 (errors): big bets do best."""
EVEN = (0.05, 0.08, 0.1, 0.12, 0.13, 0.12, 0.1, 0.1, 0.08, 0.07, 0.05)
"""Their weights where nothing is known."""


class Bets:
    """Wealth of a bettor that starts with 1. State is a left fold over the pairs: chunks make no difference."""

    def __init__(self, lowest: float, fails_at: float, weights: tuple[float, ...] = EVEN) -> None:
        """`lowest` < 0: the smallest difference possible. `fails_at` > 1: the wealth that refutes the claim."""
        if not lowest < 0 or not fails_at > 1:
            raise ValueError(f"lowest must be below 0 and fails_at above 1, not {lowest} and {fails_at}")
        self.fails_at = fails_at
        self.pairs = 0
        self.crossed_after: int | None = None
        """After how many pairs the wealth first reached `fails_at`; it stays refuted whatever comes."""
        self._bets = np.array(FRACTIONS) / -lowest
        self._weights = np.array(weights) / sum(weights)
        self._logs = np.log((1 - KEPT_BACK) * self._weights)
        self._reserve = KEPT_BACK
        self._at_crossing = 0.0

    def add(self, differences: Values) -> None:
        """Differences of the next pairs, shape (n,), in their order; each at least `lowest`."""
        done = 0
        while done < len(differences):
            if self.pairs and self.pairs % SEGMENT == 0:
                self._stake_afresh()
            take = min(SEGMENT - self.pairs % SEGMENT, len(differences) - done)
            self._play(differences[done : done + take])
            done += take

    def _stake_afresh(self) -> None:
        piece = KEPT_BACK / ((k := self.pairs // SEGMENT) * (k + 1))
        self._reserve = KEPT_BACK / (k + 1)
        self._logs = np.logaddexp(self._logs, np.log(piece * self._weights))

    def _play(self, differences: Values) -> None:
        path = np.cumsum(np.log1p(np.outer(self._bets, differences)), axis=1)
        # Each bet at its own best moment bounds the wealth from above; the path is summed only if that crosses.
        if self.crossed_after is None and self._total(self._logs + path.max(axis=1)) >= self.fails_at:
            self._look_for_crossing(path)
        self._logs = self._logs + path[:, -1]
        self.pairs += len(differences)

    def _look_for_crossing(self, path: Values) -> None:
        wealth = self._reserve + np.exp(np.minimum(self._logs[:, None] + path, 700.0)).sum(axis=0)
        crossed = np.flatnonzero(wealth >= self.fails_at)
        if len(crossed):
            self.crossed_after = self.pairs + int(crossed[0]) + 1
            self._at_crossing = float(wealth[crossed[0]])

    def _total(self, logs: Values) -> float:
        return self._reserve + float(np.exp(np.minimum(logs, 700.0)).sum())

    @property
    def wealth(self) -> float:
        """Now: the e-value against the claim. At most about 1e305."""
        return self._total(self._logs)

    @property
    def evidence(self) -> float:
        """The wealth now; of a claim once refuted at least what refuted it."""
        return max(self.wealth, self._at_crossing)

    @property
    def refuted(self) -> bool:
        return self.crossed_after is not None

    @property
    def holds_now(self) -> bool:
        """The wealth is at `fails_at` now: for what is to be given up when newer pairs speak against it."""
        return self.wealth >= self.fails_at
