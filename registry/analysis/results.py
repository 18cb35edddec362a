"""A guard's result for people: its state, the arms' numbers with limits, and a sentence.

`registry.analysis.analysis` adds to an `Arm` what it did and asks `result_of` for each guard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from registry.analysis import sentences
from registry.analysis.confidence import MeanLimits, Sketch, share_limits
from registry.analysis.guards import LETTERS, QUANTILES, Judge, LatencyJudge, RewardJudge, ShareJudge
from registry.analysis.verdict import GuardResult
from registry.plan import Guards


class Arm:
    """What one arm did. The limits of each number miss it, at any time, with probability `miss_ratio` at most."""

    def __init__(self, guards: Guards, reward_range: tuple[float, float], miss_ratio: float) -> None:
        self.outcomes = np.zeros(256, dtype=np.int64)
        """Requests by outcome, at the letter's code."""
        self.latencies = Sketch()
        lowest, highest = reward_range
        self.rewards = MeanLimits(lowest, highest, miss_ratio) if lowest < highest else None
        self.measures: dict[str, Sketch | MeanLimits] = {
            **{name: MeanLimits(0.0, 1.0, miss_ratio) for name in guards.shares},
            **{name: Sketch() for name in guards.medians},
        }
        self._miss_ratio = miss_ratio

    @property
    def requests(self) -> int:
        return int(self.outcomes.sum())

    def estimate(self, name: str) -> Estimate:
        """What the guard of that name compares."""
        if name in QUANTILES:
            return Estimate(*self.latencies.quantile(QUANTILES[name], self._miss_ratio))
        if name in LETTERS:
            if not (requests := self.requests):
                return Estimate()
            ones = int(self.outcomes[[ord(letter) for letter in LETTERS[name]]].sum())
            return Estimate(ones / requests, *share_limits(ones, requests, self._miss_ratio))
        measured = self.measures.get(name, self.rewards)
        if isinstance(measured, Sketch):
            return Estimate(*measured.quantile(0.5, self._miss_ratio))
        if measured is None or not measured.count:
            return Estimate()
        return Estimate(measured.mean, *measured.limits())


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float | None = None
    low: float | None = None
    high: float | None = None


def result_of(name: str, judge: Judge | None, canary: Arm, control: Arm) -> GuardResult:
    """Of the guard that `judge` judges; None: one that cannot be judged."""
    if judge is None:
        return GuardResult(name, "Error", sentences.NO_WEIGHTS)
    mine, theirs = canary.estimate(name), control.estimate(name)
    result = GuardResult(
        name=name,
        state=judge.state,
        sentence="",
        canary=mine.value,
        canary_low=mine.low,
        canary_high=mine.high,
        control=theirs.value,
        control_low=theirs.low,
        control_high=theirs.high,
        evidence=judge.failing.evidence,
        fails_at=judge.failing.fails_at,
        superior=judge.better.holds_now if isinstance(judge, RewardJudge) else None,
        failed_after=judge.failed_after,
    )
    return replace(result, sentence=_sentence(judge, result))


def _sentence(judge: Judge, result: GuardResult) -> str:
    if isinstance(judge, ShareJudge):
        return sentences.of_share(judge.guard, result)
    if isinstance(judge, LatencyJudge):
        return sentences.of_latency(judge.guard, result)
    if isinstance(judge, RewardJudge):
        return sentences.of_reward(judge.guard, result, judge.any_feedback)
    raise TypeError(f"no sentence for a {type(judge).__name__}")
