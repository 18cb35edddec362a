"""What each guard asks of a pair of requests: numbers that are at most 0 on average while the canary is no worse.

Each judge holds the bets of one guard. "Fail" bets against "no worse than the margin"; "pass" bets against "worse by
the pass margin or more", and only its wealth now counts, so that a pass is lost when newer requests speak against it.
`registry.analysis.analysis` feeds the judges and reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from registry.analysis.betting import EVEN, RARE, Bets, Values
from registry.analysis.verdict import GuardState
from registry.plan import Guards, LatencyGuard, RateGuard, RewardGuard, RolloutPlan
from registry.traffic import ABSTAINED, EMPTY, FAILURES

Codes = npt.NDArray[np.uint8]

RISK_SHARES: Mapping[str, float] = {
    "error": 0.5, "p50": 0.08, "p95": 0.1, "p99": 0.06, "abstained": 0.03, "empty": 0.03, "reward": 0.2,
}  # fmt: skip
"""Parts of `false_rollback_ratio`, scaled up where guards are off. Errors get most: they must be found soonest."""

MEASURE_RISK_SHARE = 0.05
"""The same of each guard of a measure."""

LETTERS: Mapping[str, frozenset[str]] = {
    "error": FAILURES,
    "abstained": frozenset({ABSTAINED}),
    "empty": frozenset({EMPTY}),
}
QUANTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def letter_table(letters: Iterable[str]) -> npt.NDArray[np.bool_]:
    """For each of 256 codes whether it is one of the letters."""
    table = np.zeros(256, dtype=np.bool_)
    table[[ord(letter) for letter in letters]] = True
    return table


class Judge:
    """The bets of one guard. `skipped`: pairs that came before it had learned enough to judge."""

    def __init__(self, failing: Bets, passing: Bets | None) -> None:
        self.failing = failing
        self.passing = passing
        self.skipped = 0
        self.pairs = 0

    @property
    def state(self) -> GuardState:
        if self.failing.refuted:
            return "Fail"
        if not self.pairs:
            return "Inconclusive"
        return "Pass" if self.passing is None or self.passing.holds_now else "Inconclusive"

    @property
    def failed_after(self) -> int | None:
        after = self.failing.crossed_after
        return None if after is None else self.skipped + after


class ShareJudge(Judge):
    """A share of requests: d = canary's - control's - margin, each 1 where the outcome is one of `letters`; or the mean
    of a measure from 0 to 1, given to `judge`."""

    def __init__(self, guard: RateGuard, letters: frozenset[str], fails_at: float, passes_at: float) -> None:
        passing = None if guard.pass_margin is None else Bets(guard.pass_margin - 1, passes_at, RARE)
        super().__init__(Bets(-1 - guard.margin, fails_at, RARE), passing)
        self.guard = guard
        self._counts = letter_table(letters)

    def add(self, canary: Codes, control: Codes) -> None:
        self.judge(self._counts[canary].astype(float) - self._counts[control])

    def judge(self, rise: Values) -> None:
        """Of each pair, canary's - control's, -1..1."""
        self.pairs += len(rise)
        self.failing.add(rise - self.guard.margin)
        if self.passing is not None and self.guard.pass_margin is not None:
            self.passing.add(self.guard.pass_margin - rise)


class LatencyJudge(Judge):
    """A quantile of latency, at a threshold t that the control's past gave: the control's quantile, known before the
    pair. Whatever t is, a canary that is at most the margin slower exceeds the raised t no more often than the control
    exceeds t; that is what is tested: d = [canary > max((1 + margin) t, t + slack)] - [control > t]."""

    def __init__(self, guard: LatencyGuard, fails_at: float, passes_at: float) -> None:
        super().__init__(Bets(-1.0, fails_at), None if guard.pass_margin is None else Bets(-1.0, passes_at))
        self.guard = guard

    def add(self, canary: Values, control: Values, thresholds: Values) -> None:
        known = ~np.isnan(thresholds)
        self.skipped += int(len(known) - known.sum())
        canary, control, thresholds = canary[known], control[known], thresholds[known]
        self.pairs += len(thresholds)
        self.failing.add((canary > self._raised(thresholds, self.guard.margin)).astype(float) - (control > thresholds))
        if self.passing is not None and self.guard.pass_margin is not None:
            # At least, not above: latencies that are all the same pass too.
            slow = canary >= self._raised(thresholds, self.guard.pass_margin)
            self.passing.add((control >= thresholds).astype(float) - slow)

    def _raised(self, thresholds: Values, margin: float) -> Values:
        raised: Values = np.maximum((1 + margin) * thresholds, thresholds + self.guard.slack_ms)
        return raised


class RewardJudge(Judge):
    """The mean reward: d = control's - canary's - margin |control's|. For rewards of 0 and more that is
    (1 - margin) control's - canary's; where some are negative the margin is a share of the mean of their sizes, so that
    a control that earns less than 0 leaves the canary room too.

    `better` bets against "earns no more than the control and its superiority margin"; with `superiority` the guard
    passes by it alone.
    """

    def __init__(
        self, guard: RewardGuard, reward_range: tuple[float, float], fails_at: float, passes_at: float
    ) -> None:
        lowest, highest = reward_range
        allowed = guard.pass_margin
        super().__init__(
            Bets(lowest * (1 + guard.margin) - highest, fails_at, EVEN),
            None if allowed is None else Bets(lowest - (1 - allowed) * highest, passes_at, EVEN),
        )
        self.guard = guard
        self.better = Bets(lowest - highest * (1 + guard.superiority_margin), passes_at, EVEN)
        self.any_feedback = False

    def add(self, canary: Values, control: Values) -> None:
        loss, size = control - canary, np.abs(control)
        self.pairs += len(loss)
        self.any_feedback |= bool(canary.any() or control.any())
        self.failing.add(loss - self.guard.margin * size)
        self.better.add(-loss - self.guard.superiority_margin * size)
        if self.passing is not None and self.guard.pass_margin is not None:
            self.passing.add(self.guard.pass_margin * size - loss)

    @property
    def state(self) -> GuardState:
        if self.failing.refuted:
            return "Fail"
        if not self.any_feedback or (self.guard.superiority and not self.better.holds_now):
            return "Inconclusive"
        return "Pass" if self.guard.superiority else super().state


def guards_of(guards: Guards) -> dict[str, RateGuard]:
    """Those in use, by name."""
    fixed = {name: getattr(guards, name) for name in RISK_SHARES if getattr(guards, name) is not None}
    return {**fixed, **guards.shares, **guards.medians}


def judges_of(plan: RolloutPlan, reward_range: tuple[float, float]) -> dict[str, Judge]:
    """By name, the guards in use that can be judged: a reward that is always 0 cannot."""
    guards = guards_of(plan.guards)
    if reward_range[0] == reward_range[1]:
        guards.pop("reward", None)
    shares = {name: RISK_SHARES.get(name, MEASURE_RISK_SHARE) for name in guards}
    total = sum(shares.values())
    judges: dict[str, Judge] = {}
    for name, guard in guards.items():
        fails_at, passes_at = total / (shares[name] * plan.false_rollback_ratio), 1 / plan.false_pass_ratio
        if isinstance(guard, RewardGuard):
            judges[name] = RewardJudge(guard, reward_range, fails_at, passes_at)
        elif isinstance(guard, LatencyGuard):
            judges[name] = LatencyJudge(guard, fails_at, passes_at)
        else:
            judges[name] = ShareJudge(guard, LETTERS.get(name, frozenset()), fails_at, passes_at)
    return judges
