"""`Scoreboard`: what routers saw and users answered, folded into one verdict per running rollout.

The controller asks it every tick. It reads the `EvidenceStore` and, through a `RewardSource`, the feedback; it feeds
`registry.analysis`. What it holds can be lost at any time: it is folded again from the rollout's beginning, to the same
counts, and its verdicts hold at any time, whatever the order in which routers' blocks arrive.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from registry.analysis import ShadowCounts, Verdict
from registry.plan import RolloutPlan, reward_range
from registry.ports import EvidenceStore, RewardSource
from registry.rollout import Rollout
from registry.traffic import FAILURES, LOST, TOKEN_CHARS, Evidence, TrialArm

log = logging.getLogger(__name__)

MOST_AHEAD = 8
"""Requests that an arm may be ahead of the other: beyond that its oldest are not compared. It costs a few percent of
the requests, and keeps what is compared within a second of what is answered, at 10 requests a second."""
GRACE_S = 2.0
"""How long after its window an answer still waits: feedback that came in time may take this long to be stored."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`blocks_per_update`: most blocks folded in one update, so that the controller keeps its lease while it catches up
    after a restart. `waiting`: most answers of a rollout that wait for their window, and most feedback that waits for
    its answer; of more, the oldest are judged by the feedback so far."""

    blocks_per_read: int = 500
    blocks_per_update: int = 4000
    events_per_read: int = 1000
    waiting: int = 200_000


class Analysing(Protocol):
    """What is asked of `registry.analysis.Analysis`."""

    def add(self, arm: TrialArm, latencies_ms: Sequence[float], outcomes: str) -> None: ...

    def keep_waiting(self, newest: int) -> None: ...

    def add_measures(self, arm: TrialArm, measures: Mapping[str, Sequence[float | None]]) -> None: ...

    def add_rewards(self, arm: TrialArm, values: Sequence[float]) -> None: ...

    def verdict(self) -> Verdict: ...


MakeAnalysis = Callable[[RolloutPlan, tuple[float, float]], Analysing]


@dataclass(frozen=True, slots=True)
class Score:
    """What the evidence says of a rollout. `lost_at_s`: when a router last wrote that it lost a replica of the canary
    arm. `late_feedback`: events that came after their answer was judged; they are counted, not judged."""

    verdict: Verdict
    lost_at_s: float | None = None
    shadow: ShadowCounts = field(default_factory=ShadowCounts)
    late_feedback: int = 0


class Scoreboard:
    """Not safe to share between threads: the controller's loop owns it."""

    def __init__(
        self, evidence: EvidenceStore, rewards: RewardSource, analysis: MakeAnalysis, bounds: Bounds | None = None
    ) -> None:
        self._evidence = evidence
        self._rewards = rewards
        self._analysis = analysis
        self._bounds = bounds or Bounds()
        self._tallies: dict[str, _Tally] = {}

    def update(
        self, app: str, rollout: Rollout, spec: Mapping[str, Any], now: float, *, feedback_complete: bool = True
    ) -> Score | None:
        """Fold what is new and judge. None while it still catches up: part of the evidence is no verdict.

        `feedback_complete`: no router holds feedback that the database has not. Otherwise answers wait beyond their
        window: without the feedback of an outage they would seem to have earned nothing.

        `spec` is the app spec of the rollout's base, whose reward weights are used; it must be the same in every call
        of a rollout. Raises RegistryUnavailable; the next call goes on from there.
        """
        tally = self._tallies.get(app)
        if tally is None or not tally.is_of(rollout):
            limits = reward_range(spec)
            tally = _Tally(rollout, self._analysis(rollout.plan, limits), limits)
            if tally.window_s is not None:
                tally.feedback_seq = self._rewards.start(app, tally.since_s)
            self._tallies[app] = tally
        if not self._fold(app, tally):
            return None
        if tally.window_s is not None:
            # Read after the blocks: an answer that is in no block yet keeps its feedback waiting, not lost
            self._read_feedback(app, tally)
            if feedback_complete:
                tally.judge_rewards(now, self._bounds.waiting)
        return tally.score()

    def forget(self, app: str) -> None:
        self._tallies.pop(app, None)

    def _fold(self, app: str, tally: _Tally) -> bool:
        """True when every block there is was folded."""
        most = self._bounds.blocks_per_read
        for _ in range(self._bounds.blocks_per_update // most):
            found = self._evidence.after(app, tally.rollout, tally.cursor, most)
            for evidence in sorted(found, key=lambda e: (e.block.at_s, e.router, e.seq)):
                try:
                    tally.add(evidence)
                except ValueError as error:  # a router of another version, maybe: one block must not stop the judging
                    fields = {"app": app, "router": evidence.router, "seq": evidence.seq, "why": str(error)}
                    log.error("evidence.unreadable", extra={"fields": fields})
            if len(found) < most:
                return True
        return False

    def _read_feedback(self, app: str, tally: _Tally) -> None:
        while True:
            rewards, seq = self._rewards.rewards(app, tally.feedback_seq, self._bounds.events_per_read)
            for reward in rewards:
                if reward.rollout == tally.rollout:
                    tally.add_feedback(reward.arm, reward.token, reward.value, reward.at_s - reward.answered_s)
            done = seq <= tally.feedback_seq or len(rewards) < self._bounds.events_per_read
            tally.feedback_seq = max(seq, tally.feedback_seq)
            if done:
                return


class _Tally:
    """One rollout's evidence so far. A bake has a tally of its own: it judges what was written since it began."""

    def __init__(self, rollout: Rollout, analysis: Analysing, reward_limits: tuple[float, float]) -> None:
        self.rollout = rollout.id
        self.cursor: dict[str, int] = {}
        self.feedback_seq = 0
        guard = rollout.plan.guards.reward
        self.window_s = None if guard is None else guard.window_s
        self._baking = rollout.phase == "baking"
        self.since_s = _since_s(rollout)
        self._analysis = analysis
        self._low, self._high = reward_limits
        self._answers = 0
        # A heap by when the window is over: a router whose clock runs ahead delays its own answers only
        self._waiting: list[tuple[float, int, TrialArm, str]] = []
        self._events: dict[tuple[TrialArm, str], float] = {}
        self._early: deque[tuple[TrialArm, str]] = deque()
        self._shadow = [0, 0, 0, 0]
        self._late = 0
        self._lost_at_s: float | None = None
        self._verdict: Verdict | None = None

    def is_of(self, rollout: Rollout) -> bool:
        """Whether this tally judges the rollout in the phase it is in."""
        baking = rollout.phase == "baking"
        return self.rollout == rollout.id and self._baking == baking and self.since_s == _since_s(rollout)

    def add(self, evidence: Evidence) -> None:
        block, arm = evidence.block, evidence.arm
        self.cursor[evidence.router] = max(evidence.seq, self.cursor.get(evidence.router, 0))
        if self._baking and block.at_s < self.since_s:
            return
        if arm == "shadow":
            failures = sum(letter in FAILURES for letter in block.outcomes)
            compared = [
                agreed for letter, agreed in zip(block.outcomes, block.agreed, strict=False) if letter not in FAILURES
            ]
            seen = (len(block.outcomes), failures, len(compared), compared.count("1"))
            self._shadow = [total + more for total, more in zip(self._shadow, seen, strict=True)]
            return
        self._analysis.add(arm, block.latencies_ms, block.outcomes)
        if block.measures:
            self._analysis.add_measures(arm, block.measures)
        # Routers write both arms at once: more than a block's length waits only because one arm had more requests.
        self._analysis.keep_waiting(max(MOST_AHEAD, len(block.outcomes)))
        self._verdict = None
        if arm == "canary" and LOST in block.outcomes:
            self._lost_at_s = max(block.at_s, self._lost_at_s or block.at_s)
        if self.window_s is not None and block.tokens:
            due_s = block.at_s + self.window_s + GRACE_S
            for n, letter in enumerate(block.outcomes):
                # A failure was answered by stable: what its user did next says nothing of this arm
                token = block.tokens[n * TOKEN_CHARS : (n + 1) * TOKEN_CHARS].strip()
                if letter not in FAILURES and token:
                    self._answers += 1
                    heapq.heappush(self._waiting, (due_s, self._answers, arm, token))

    def add_feedback(self, arm: TrialArm, token: str, value: float, after_s: float) -> None:
        """`after_s`: how long after its answer the event came."""
        if self.window_s is not None and after_s > self.window_s:
            self._late += 1
            return
        key = (arm, token)
        if key not in self._events:
            self._early.append(key)
        self._events[key] = self._events.get(key, 0.0) + value

    def judge_rewards(self, now: float, most_waiting: int) -> None:
        """Hand the rewards of answers whose window is over to the analysis, in the order they were answered."""
        ripe: dict[TrialArm, list[float]] = {"canary": [], "control": []}
        while self._waiting and (self._waiting[0][0] <= now or len(self._waiting) > most_waiting):
            _, _, arm, token = heapq.heappop(self._waiting)
            ripe[arm].append(min(max(self._events.pop((arm, token), 0.0), self._low), self._high))
        for arm, values in ripe.items():
            if values:
                self._analysis.add_rewards(arm, values)
                self._verdict = None
        while len(self._early) > most_waiting:
            # Feedback on answers that no block will ever hold: their router died before it wrote them
            if self._events.pop(self._early.popleft(), None) is not None:
                self._late += 1

    def score(self) -> Score:
        if self._verdict is None:
            self._verdict = self._analysis.verdict()
        return Score(self._verdict, self._lost_at_s, ShadowCounts(*self._shadow), self._late)


def _since_s(rollout: Rollout) -> float:
    """Steps add to each other's evidence; a bake starts anew, and anew once both its arms take requests."""
    return rollout.since_s if rollout.phase == "baking" else rollout.started_s
