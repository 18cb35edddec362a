"""Judges a canary against its control at any time, and as often as one likes.

`registry.scoreboard` makes one `Analysis` per rollout, adds what the arms answered and earned, and asks for the
verdict. Pure: the same streams give the same verdict. Its state is a left fold over pairs: the i-th canary request is
compared with the i-th control request, so that what moves both arms (an outage behind them, the hour of the day) moves
no verdict; how the streams were cut into chunks, or which arm came first, makes no difference. `keep_waiting` keeps
the pairs recent where one arm runs ahead.

Risks. A release that is no worse than the margins is ever failed with probability at most `false_rollback_ratio`, over
the whole rollout and all guards together: the guards in use share it by `guards.RISK_SHARES` (errors half), and each
is an e-process (`registry.analysis.betting`) that fails at the inverse of its part. It holds at every pair, so a guard
that has failed stays failed. A guard that is worse by its pass margin or more ever passes with probability at most
`false_pass_ratio`; since all guards must pass, so does the release.

What is assumed is that, given the past, a canary request is no likelier to fail than its control request by more than
the margin; requests of one user that fail together in one arm weaken that, as in every test that counts requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from registry.analysis import sentences
from registry.analysis.betting import Values
from registry.analysis.guards import LETTERS as LETTERS_OF
from registry.analysis.guards import (
    QUANTILES,
    Codes,
    LatencyJudge,
    RewardJudge,
    ShareJudge,
    guards_of,
    judges_of,
    letter_table,
)
from registry.analysis.pairing import Pairing, RunningQuantiles
from registry.analysis.results import Arm, result_of
from registry.analysis.verdict import GuardState, Verdict
from registry.plan import RolloutPlan
from registry.traffic import ABSTAINED, ANSWERED, EMPTY, FAILURES, TIMED_OUT, TrialArm

LETTERS = "".join(sorted({ANSWERED, ABSTAINED, EMPTY} | FAILURES))
KNOWN = letter_table(LETTERS)
TIMED = letter_table((ANSWERED, ABSTAINED, EMPTY, TIMED_OUT))
"""Whose latency counts: what failed otherwise took as long as failing takes."""

WORST_FIRST: tuple[GuardState, ...] = ("Fail", "Error", "Inconclusive", "Pass")


class Analysis:
    def __init__(self, plan: RolloutPlan, reward_range: tuple[float, float]) -> None:
        """`reward_range`: (lowest, highest) reward of one request, as `registry.plan.reward_range` reads it."""
        lowest, highest = reward_range
        if not (np.isfinite(reward_range).all() and lowest <= 0 <= highest):
            raise ValueError(f"reward_range must hold 0, as a request without feedback earns it, not {reward_range}")
        self._range = reward_range
        self._guards = plan.guards
        miss_ratio = plan.false_pass_ratio / 2  # of each arm: the two limits of a guard hold together
        self._arms: dict[TrialArm, Arm] = {
            arm: Arm(plan.guards, reward_range, miss_ratio) for arm in get_args(TrialArm)
        }
        self._judges = judges_of(plan, reward_range)
        self._outcomes, self._latencies, self._rewards = Pairing(), Pairing(), Pairing()
        self._thresholds = RunningQuantiles(tuple(QUANTILES.values()))
        self._measured = {name: Pairing() for name in (*plan.guards.shares, *plan.guards.medians)}
        self._medians = {name: RunningQuantiles((0.5,)) for name in plan.guards.medians}

    def add(self, arm: TrialArm, latencies_ms: Sequence[float], outcomes: str) -> None:
        """The arm's next requests, in order: latency and letter (`registry.traffic`) of each. Raises ValueError, and
        adds none of them, for a latency that is no number >= 0, an unknown letter, or unequal lengths."""
        into = self._arm(arm)
        times = np.asarray(latencies_ms, dtype=np.float64)
        letters = np.frombuffer(outcomes.encode(), dtype=np.uint8)
        if len(times) != len(letters):
            raise ValueError(f"{len(times)} latencies_ms for {len(letters)} outcomes: give one of each per request")
        if not (np.isfinite(times) & (times >= 0)).all():
            raise ValueError("latencies_ms must be finite numbers of milliseconds, 0 or more")
        if not KNOWN[letters].all():
            raise ValueError(f"outcomes must be letters of registry.traffic ({LETTERS})")
        timed = times[TIMED[letters]]
        into.outcomes += np.bincount(letters, minlength=256)
        into.latencies.add(timed)
        self._judge_outcomes(*self._outcomes.add(arm, letters))
        self._judge_latencies(*self._latencies.add(arm, timed))

    def keep_waiting(self, newest: int) -> None:
        """Forget the requests that wait for a partner, but the `newest` of the arm that is ahead; they stay counted.

        Users are hashed to arms, so one runs ahead of the other by about the square root of their number, and a canary
        that breaks would be judged only when the other had caught up. Which are forgotten depends on when requests
        ended, not on how, so the risks stay as stated.
        """
        for pairing in (self._outcomes, self._latencies, *self._measured.values()):
            pairing.keep(newest)

    def add_measures(self, arm: TrialArm, measures: Mapping[str, Sequence[float | None]]) -> None:
        """Measures of the arm's next requests, by name; None where a request has none. Those that no guard names are
        left. Raises ValueError, and adds none of that name, for what is not finite or, for a share, not in 0..1."""
        into = self._arm(arm)
        for name in self._measured.keys() & measures.keys():
            values = np.asarray([value for value in measures[name] if value is not None], dtype=np.float64)
            most = np.inf if name in self._medians else 1.0
            if not (np.isfinite(values) & (values >= 0) & (values <= most)).all():
                raise ValueError(f"measure {name} must be finite, from 0{'' if name in self._medians else ' to 1'}")
            into.measures[name].add(values)
            canary, control = self._measured[name].add(arm, values)
            if len(canary):
                self._judge_measure(name, canary, control)

    def add_rewards(self, arm: TrialArm, values: Sequence[float]) -> None:
        """What the arm's next requests earned, in order: 0.0 where no feedback came. A sum of several events beyond
        `reward_range` counts as its end. Raises ValueError for what is not finite."""
        into = self._arm(arm)
        rewards = np.asarray(values, dtype=np.float64)
        if not np.isfinite(rewards).all():
            raise ValueError("rewards must be finite numbers")
        if into.rewards is None:
            return
        rewards = np.clip(rewards, *self._range)
        into.rewards.add(rewards)
        canary, control = self._rewards.add(arm, rewards)
        judge = self._judges.get("reward")
        if isinstance(judge, RewardJudge) and len(canary):
            judge.add(canary, control)

    def verdict(self) -> Verdict:
        canary, control = self._arms["canary"].requests, self._arms["control"].requests
        arms = self._arms["canary"], self._arms["control"]
        guards = tuple(result_of(name, self._judges.get(name), *arms) for name in guards_of(self._guards))
        states = {guard.state for guard in guards}
        if not canary or not control:
            missing = sentences.NO_CANARY if not canary else sentences.NO_CONTROL
            return Verdict("Inconclusive", missing, guards, canary, control)
        if not guards:
            return Verdict("Pass", sentences.NO_GUARDS, guards, canary, control)
        state = next(s for s in WORST_FIRST if s in states)
        return Verdict(state, sentences.of_all(state, guards, canary, control), guards, canary, control)

    def _arm(self, arm: TrialArm) -> Arm:
        if arm not in self._arms:
            raise ValueError(f"arm must be one of {list(self._arms)}, not {arm!r}")
        return self._arms[arm]

    def _judge_outcomes(self, canary: Codes, control: Codes) -> None:
        if not len(canary):
            return
        for name in LETTERS_OF:
            judge = self._judges.get(name)
            if isinstance(judge, ShareJudge):
                judge.add(canary, control)

    def _judge_measure(self, name: str, canary: Values, control: Values) -> None:
        judge = self._judges[name]
        if isinstance(judge, LatencyJudge):
            judge.add(canary, control, self._medians[name].before(control)[:, 0])
        elif isinstance(judge, ShareJudge):
            judge.judge(canary - control)

    def _judge_latencies(self, canary: Values, control: Values) -> None:
        if not len(canary):
            return
        thresholds = self._thresholds.before(control)
        for column, name in enumerate(QUANTILES):
            judge = self._judges.get(name)
            if isinstance(judge, LatencyJudge):
                judge.add(canary, control, thresholds[:, column])
