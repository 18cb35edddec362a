"""How evidence and feedback become the streams that are judged, and that a restart makes the same of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from registry.analysis import Verdict
from registry.fakes import MemoryEvidence, MemoryRewards, MemoryTables
from registry.plan import Guards, RewardGuard, RolloutPlan
from registry.rollout import Rollout
from registry.scoreboard import GRACE_S, Bounds, Score, Scoreboard
from registry.traffic import Block, Evidence, EvidenceArm, Reward, TrialArm

SPEC = {"feedback": {"reward": {"order": 1.0, "reject": -0.5}}}
PLAN = RolloutPlan(guards=Guards(reward=RewardGuard(margin=0.02, window_s=60)))
ROLLOUT = Rollout(id=3, version=2, base=1, phase="step", plan=PLAN, started_s=1000.0, since_s=1000.0, who="a", why="b")


@dataclass
class Streams:
    """Stands where the analysis stands, and keeps what it was given."""

    outcomes: dict[str, str] = field(default_factory=lambda: {"canary": "", "control": ""})
    latencies: dict[str, list[float]] = field(default_factory=lambda: {"canary": [], "control": []})
    rewards: dict[str, list[float]] = field(default_factory=lambda: {"canary": [], "control": []})
    kept: list[int] = field(default_factory=list)
    verdicts: int = 0

    def add(self, arm: TrialArm, latencies_ms: Sequence[float], outcomes: str) -> None:
        if "?" in outcomes:
            raise ValueError("unknown letter")
        self.outcomes[arm] += outcomes
        self.latencies[arm] += latencies_ms

    def keep_waiting(self, newest: int) -> None:
        self.kept.append(newest)

    def add_rewards(self, arm: TrialArm, values: Sequence[float]) -> None:
        self.rewards[arm] += values

    def verdict(self) -> Verdict:
        self.verdicts += 1
        return Verdict("Inconclusive", "made up", canary_requests=len(self.outcomes["canary"]))


class World:
    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds
        tables = MemoryTables(clock=lambda: 0.0)
        self.evidence = MemoryEvidence(tables)
        self.rewards = MemoryRewards(tables)
        self.made: list[Streams] = []
        self.ranges: list[tuple[float, float]] = []
        self.board = self.restarted()
        self.seqs: dict[str, int] = {}

    def restarted(self) -> Scoreboard:
        def make(plan: RolloutPlan, limits: tuple[float, float]) -> Streams:
            self.made.append(Streams())
            self.ranges.append(limits)
            return self.made[-1]

        return Scoreboard(self.evidence, self.rewards, make, self.bounds)

    def saw(self, arm: EvidenceArm, outcomes: str, at_s: float, *, router: str = "r1", **more: str) -> None:
        self.seqs[router] = self.seqs.get(router, 0) + 1
        times = tuple(float(n) for n in range(len(outcomes)))
        block = Block(at_s, times, outcomes, **more)
        self.evidence.add([Evidence("wines", 3, router, self.seqs[router], arm, block)])

    def fed_back(self, arm: TrialArm, token: str, value: float, answered_s: float, after_s: float = 1.0) -> None:
        seq = len(self.rewards.events) + 1
        reward = Reward(seq, 3, arm, token, answered_s, value, answered_s + after_s)
        self.rewards.events.append(("wines", reward))

    def score(self, now: float, rollout: Rollout = ROLLOUT, spec: dict[str, Any] = SPEC) -> Score:
        score = self.board.update("wines", rollout, spec, now)
        assert score is not None
        return score

    @property
    def streams(self) -> Streams:
        return self.made[-1]


def test_blocks_are_folded_once_in_the_order_of_their_time() -> None:
    world = World()
    world.saw("canary", "ae", 1002, router="r2")
    world.saw("canary", "nz", 1001, router="r1")
    world.saw("control", "aaa", 1003, router="r1")
    world.score(1004)
    world.score(1005)
    assert world.streams.outcomes == {"canary": "nzae", "control": "aaa"}
    assert world.streams.latencies["canary"] == [0.0, 1.0, 0.0, 1.0]
    world.saw("canary", "t", 1006, router="r2")
    assert world.score(1007).verdict.canary_requests == 5
    assert world.ranges == [(-0.5, 1.0)]


def test_judging_costs_nothing_while_nothing_is_new() -> None:
    world = World()
    world.saw("canary", "a", 1001)
    for now in range(1002, 1012):
        world.score(now)
    assert world.streams.verdicts == 1


def test_a_lost_replica_of_the_canary_counts_and_one_of_the_control_does_not() -> None:
    world = World()
    world.saw("control", "c", 1001)
    assert world.score(1002).lost_at_s is None
    world.saw("canary", "aac", 1003)
    world.saw("canary", "a", 1004)
    assert world.score(1005).lost_at_s == 1003


def test_shadow_traffic_is_counted_and_not_judged() -> None:
    world = World()
    world.saw("shadow", "aaet", 1001, agreed="1000")
    world.saw("shadow", "az", 1002, agreed="11")
    score = world.score(1003)
    assert (score.shadow.requests, score.shadow.failures) == (6, 2)
    assert (score.shadow.compared, score.shadow.agreed) == (4, 3)
    assert world.streams.outcomes == {"canary": "", "control": ""}


def test_an_answer_is_rewarded_when_its_window_is_over() -> None:
    world = World()
    world.saw("canary", "aaa", 1010, tokens="aaaaaaaabbbbbbbbcccccccc")
    world.fed_back("canary", "bbbbbbbb", 1.0, 1009.5)
    world.fed_back("canary", "cccccccc", -0.2, 1009.5)
    world.fed_back("canary", "cccccccc", -0.1, 1009.6)
    world.score(1010 + 60)
    assert world.streams.rewards["canary"] == []
    world.score(1010 + 60 + GRACE_S)
    assert world.streams.rewards["canary"] == [0.0, 1.0, -0.30000000000000004]
    world.score(1200)
    assert len(world.streams.rewards["canary"]) == 3


def test_rewards_are_of_their_own_arm_and_within_the_range() -> None:
    world = World()
    world.saw("canary", "aa", 1001, tokens="aaaaaaaabbbbbbbb")
    world.saw("control", "aa", 1001, tokens="aaaaaaaabbbbbbbb")
    world.fed_back("control", "aaaaaaaa", 7.0, 1000.5)
    world.fed_back("canary", "bbbbbbbb", -7.0, 1000.5)
    world.score(1100)
    assert world.streams.rewards == {"canary": [0.0, -0.5], "control": [1.0, 0.0]}


def test_late_feedback_is_counted_and_not_judged() -> None:
    world = World()
    world.saw("canary", "a", 1001, tokens="aaaaaaaa")
    world.fed_back("canary", "aaaaaaaa", 1.0, 1000.9, after_s=61)
    assert world.score(1100).late_feedback == 1
    assert world.streams.rewards["canary"] == [0.0]


def test_a_failure_earns_nothing_since_stable_answered_it() -> None:
    world = World()
    world.saw("canary", "aeta", 1001, tokens="aaaaaaaabbbbbbbbccccccccdddddddd")
    world.fed_back("canary", "dddddddd", 1.0, 1000.9)
    world.score(1100)
    assert world.streams.rewards["canary"] == [0.0, 1.0]


def test_feedback_of_other_rollouts_is_passed_over() -> None:
    world = World()
    world.saw("canary", "a", 1001, tokens="aaaaaaaa")
    world.rewards.events.append(("wines", Reward(1, 2, "canary", "aaaaaaaa", 1000.5, 1.0, 1000.6)))
    world.score(1100)
    assert world.streams.rewards["canary"] == [0.0]


def test_without_a_reward_guard_no_feedback_is_read() -> None:
    world = World()
    world.rewards.rewards = world.rewards.start = None  # type: ignore[method-assign, assignment]
    plan = PLAN.model_copy(update={"guards": Guards(reward=None)})
    world.saw("canary", "a", 1001, tokens="aaaaaaaa")
    world.score(1100, replace(ROLLOUT, plan=plan))
    assert world.streams.outcomes["canary"] == "a"


def test_steps_add_up_and_a_bake_starts_anew() -> None:
    world = World()
    world.saw("canary", "ae", 1001)
    world.score(1002)
    assert world.score(1010, replace(ROLLOUT, step=1, since_s=1009)).verdict.canary_requests == 2
    baking = replace(ROLLOUT, phase="baking", since_s=1020.0)
    world.saw("canary", "aaaa", 1019.9)
    world.saw("canary", "zzz", 1020.1)
    assert world.score(1021, baking).verdict.canary_requests == 3
    assert world.streams.outcomes["canary"] == "zzz"


def test_a_restart_makes_the_same_of_it() -> None:
    world = World()
    tokens = [f"{n:08d}" for n in range(40)]
    for n, token in enumerate(tokens):
        arm: TrialArm = "canary" if n % 2 else "control"
        world.saw(arm, "a" if n % 3 else "n", 1000 + n, router=f"r{n % 4}", tokens=token)
        if n % 5 == 0:
            world.fed_back(arm, token, 1.0, 1000 + n - 0.1, after_s=2.0 * n)
        world.score(1000.5 + n)
    world.score(1200)
    world.board = world.restarted()
    world.score(1200)
    assert world.made[0] != Streams()
    assert [replace(streams, verdicts=0) for streams in world.made] == [replace(world.made[0], verdicts=0)] * 2


def test_part_of_the_evidence_gives_no_verdict() -> None:
    world = World(Bounds(blocks_per_read=2, blocks_per_update=4))
    for n in range(5):
        world.saw("canary", "a", 1001 + n)
    assert world.board.update("wines", ROLLOUT, SPEC, 1010) is None
    assert world.score(1010).verdict.canary_requests == 5


def test_a_block_that_cannot_be_judged_stops_no_other() -> None:
    world = World()
    world.saw("canary", "a?", 1001)
    world.saw("canary", "ee", 1002)
    assert world.score(1003).verdict.canary_requests == 2


def test_what_waits_is_bounded() -> None:
    world = World(Bounds(waiting=3))
    world.saw("canary", "aaaaa", 1001, tokens="".join(f"{n:08d}" for n in range(5)))
    world.fed_back("canary", "00000001", 1.0, 1000.9)
    for n in range(6):
        world.fed_back("canary", f"feed000{n}", 1.0, 1000.9)  # on answers that no block holds
    score = world.score(1002)
    assert world.streams.rewards["canary"] == [0.0, 1.0]
    world.score(1100)
    assert len(world.streams.rewards["canary"]) == 5
    assert score.late_feedback == 3


def test_answers_wait_for_feedback_that_a_router_still_holds() -> None:
    world = World()
    world.saw("canary", "a", 1001.0, tokens="0000aaaa")
    world.board.update("wines", ROLLOUT, SPEC, 5000.0, feedback_complete=False)
    assert world.streams.rewards["canary"] == []
    world.fed_back("canary", "0000aaaa", 1.0, 1000.5)
    world.score(5001.0)
    assert world.streams.rewards["canary"] == [1.0]


def test_measures_of_answers_reach_the_analysis_of_their_arm() -> None:
    seen: list[tuple[str, Any]] = []

    class Measured(Streams):
        def add_measures(self, arm: TrialArm, measures: Any) -> None:
            seen.append((arm, dict(measures)))

    world = World()
    board = Scoreboard(world.evidence, world.rewards, lambda plan, limits: Measured())
    for arm, value in (("canary", 1.0), ("control", 0.0)):
        block = Block(1001, (1.0,), "a", measures={"failed_grounded": (value,)})
        world.evidence.add([Evidence("wines", 3, "r1", 1 + len(seen) + (arm == "control"), arm, block)])  # type: ignore[arg-type]
    board.update("wines", ROLLOUT, SPEC, 1002)
    assert seen == [("canary", {"failed_grounded": (1.0,)}), ("control", {"failed_grounded": (0.0,)})]
