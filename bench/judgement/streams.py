"""Made-up requests of a canary and its control, for `bench.judgement.simulate`. All data here is invented.

Both arms share a day: latency rises and falls by `SWING` over `DAY` requests, from a random hour on. Failures are
rare, latency is lognormal, and 60 % of the answers earn a reward of 1 (a selection), 5 % one of -0.5 (a rejection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BASE_ERROR, ABSTAINS, FINDS_NOTHING = 0.001, 0.03, 0.01
MEDIAN_MS, SIGMA = 40.0, 0.5
SWING, DAY = 0.4, 2000
SELECTED, REJECTED, REJECTION = 0.60, 0.05, -0.5
REWARD_RANGE = (REJECTION, 1.0)
MEAN_REWARD = SELECTED + REJECTED * REJECTION
TAIL_FROM = 0.9
TROUBLE, TROUBLE_ERROR, TROUBLE_SLOWER = 600, 0.05, 3.0


@dataclass(frozen=True)
class Scenario:
    """What is wrong with the canary. `trouble`: for 600 requests what both arms need fails 5 % of them and takes
    three times as long. `sound`: the canary is no worse than the plan's margins, so a rollback is false."""

    name: str
    title: str
    error: float = BASE_ERROR
    slower: float = 1.0
    tail_slower: float = 1.0
    reward_loss: float = 0.0
    trouble: bool = False
    sound: bool = False
    horizon: int = 4000
    share: float = 1.0
    """Of the rollouts asked for, how many are run: fewer where each is long."""


SOUND = (
    Scenario("quiet", "A/A: both arms the same", sound=True),
    Scenario("troubled", "A/A: both arms share an outage", trouble=True, sound=True),
    Scenario(
        "margins",
        "worse by exactly the margins",
        error=BASE_ERROR + 0.005,
        slower=1.1,
        reward_loss=0.02,
        sound=True,
    ),
)
FAULTY = (
    Scenario("error-10", "errors 10 % against 0.1 %", error=0.10),
    Scenario("error-5", "errors 5 % against 0.1 %", error=0.05, horizon=6000),
    Scenario("error-2", "errors 2 % against 0.1 %", error=0.02, horizon=12000),
    Scenario("slow-2", "latency x 2", slower=2.0),
    Scenario("slow-1.2", "latency x 1.2", slower=1.2, horizon=20000),
    Scenario("tail-2", "slowest tenth x 2, the rest as before", tail_slower=2.0, horizon=12000),
    Scenario("reward-20", "reward 20 % lower", reward_loss=0.20, horizon=9000),
    Scenario("reward-5", "reward 5 % lower", reward_loss=0.05, horizon=150000, share=0.3),
)


@dataclass(frozen=True)
class ArmStream:
    """Requests in order, shape (n,) each: an outcome's code (`registry.traffic`), ms, reward."""

    outcomes: npt.NDArray[np.uint8]
    latencies_ms: Array
    rewards: Array


class Streams:
    """The two arms of one rollout, made up piece by piece."""

    def __init__(self, scenario: Scenario, seed: tuple[int, ...]) -> None:
        self.scenario = scenario
        self._rng = np.random.default_rng(seed)
        self._made = 0
        self._hour = self._rng.random()
        self._trouble = int(self._rng.integers(0, scenario.horizon - TROUBLE)) if scenario.trouble else -TROUBLE

    def next(self, requests: int) -> tuple[ArmStream, ArmStream]:
        """(canary's, control's)."""
        at = np.arange(self._made, self._made + requests)
        self._made += requests
        troubled = (at >= self._trouble) & (at < self._trouble + TROUBLE)
        level = MEDIAN_MS * (1 + SWING * np.sin(2 * np.pi * (at / DAY + self._hour)))
        level = np.where(troubled, TROUBLE_SLOWER * level, level)
        canary = self._arm(self.scenario, level, troubled)
        return canary, self._arm(SOUND[0], level, troubled)

    def _arm(self, worse: Scenario, level: Array, troubled: Array) -> ArmStream:
        n, rng = len(level), self._rng
        fate = rng.random(n)
        error = np.where(troubled, np.maximum(worse.error, TROUBLE_ERROR), worse.error)
        outcomes = np.full(n, ord("a"), dtype=np.uint8)
        outcomes[fate > 1 - ABSTAINS - FINDS_NOTHING] = ord("z")
        outcomes[fate > 1 - ABSTAINS] = ord("n")
        outcomes[fate < error] = ord("e")
        speed = rng.standard_normal(n)
        latencies = level * np.exp(SIGMA * speed) * worse.slower
        if worse.tail_slower != 1.0:
            latencies = np.where(speed > TAIL_Z, latencies * worse.tail_slower, latencies)
        selected = SELECTED - worse.reward_loss * MEAN_REWARD
        liked = rng.random(n)
        rewards = np.where(liked < selected, 1.0, np.where(liked > 1 - REJECTED, REJECTION, 0.0))
        return ArmStream(outcomes, latencies, rewards)


TAIL_Z = 1.2815515655446004
"""The standard normal's quantile at `TAIL_FROM`."""
