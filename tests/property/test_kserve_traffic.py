"""Whatever happens, in whatever order, to a rollout on KServe: requests only ever go where a pod is ready or a person
sent them, weights never exceed what the controller asked for, and what is asked for is reached once all is quiet."""

from __future__ import annotations

import httpx
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from registry.fakes import MemoryBoard, MemoryTables
from registry.kserve_traffic import KserveTraffic, KubernetesApi, Settings
from registry.kserve_traffic.mapping import name_of, version_of
from registry.traffic import Command, Traffic
from tests.api_server import Fault, Reply
from tests.kserve_world import NAMESPACE, WHERE, Kserve, server

VERSIONS = st.integers(1, 4)
PERCENTS = st.sampled_from([0.0, 1.0, 5.0, 25.0, 50.0])
FAULTS = st.sampled_from(
    [
        Fault(Reply(429, {"message": "busy"}, {"retry-after": "3"})),
        Fault(Reply(500, {"message": "etcd"})),
        Fault(Reply(409, {"message": "the object has been modified"})),
        Fault(lost=True),
    ]
)


class Commands:
    """The controller's ear. It deals with a command when the test says so."""

    def __init__(self) -> None:
        self.waiting: dict[int, Command] = {}
        self.last = 0

    def submit(self, command: Command) -> int:
        self.last += 1
        self.waiting[self.last] = command
        return self.last

    def handled(self, command_id: int) -> bool:
        return command_id not in self.waiting


class Rollouts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self.cluster = server()
        self.kserve = Kserve(httpx.Client(base_url="http://cluster", transport=self.cluster.transport()))
        self.kserve.create()
        self.board = MemoryBoard(MemoryTables(clock=lambda: self.now))
        self.commands = Commands()
        self.asked: dict[str, int] = {}
        """The most that each predictor was ever asked to get since a person touched it."""
        self.set_traffic(Traffic("wines", 1, 1))
        self.restart()
        self.said_ready: set[str] = set()
        """Predictors that KServe said were ready, since they were last brought up."""

    def set_traffic(self, traffic: Traffic) -> None:
        self.board.tables.traffic["wines"] = traffic
        for version, percent in ((traffic.canary, traffic.canary_percent), (traffic.control, traffic.control_percent)):
            if version is not None and version != traffic.stable:
                self.asked[name_of(version)] = max(self.asked.get(name_of(version), 0), int(percent))

    @property
    def traffic(self) -> Traffic:
        return self.board.tables.traffic["wines"]

    @rule()
    def restart(self) -> None:
        api = KubernetesApi("http://cluster", WHERE, transport=self.cluster.transport())
        clock = lambda: self.now  # noqa: E731
        self.follower = KserveTraffic(
            api, self.board, self.commands, Settings(NAMESPACE, look_s=2), wall=clock, monotonic=clock
        )

    @rule(version=VERSIONS, percent=PERCENTS)
    def try_out(self, version: int, percent: float) -> None:
        now = self.traffic
        if version != now.stable:
            arms = {"canary": version, "control": now.stable, "canary_percent": percent, "control_percent": percent}
            self.set_traffic(Traffic("wines", now.generation + 1, now.stable, rollout=now.generation, **arms))  # type: ignore[arg-type]

    @precondition(lambda self: self.traffic.canary not in (None, self.traffic.stable))
    @rule(percent=PERCENTS)
    def promote(self, percent: float) -> None:
        now = self.traffic
        assert now.canary is not None
        arms = {"canary": now.canary, "control": now.stable, "canary_percent": percent, "control_percent": percent}
        new = Traffic("wines", now.generation + 1, now.canary, rollout=now.rollout, warm=(now.stable,), **arms)  # type: ignore[arg-type]
        self.set_traffic(new)

    @rule(version=VERSIONS)
    def switch(self, version: int) -> None:
        self.set_traffic(Traffic("wines", self.traffic.generation + 1, version))

    @rule()
    def deal_with_commands(self) -> None:
        for command in self.commands.waiting.values():
            if command.verb == "abort":
                self.set_traffic(Traffic("wines", self.traffic.generation + 1, self.traffic.stable))
        self.commands.waiting.clear()

    @rule()
    def kserve_works(self) -> None:
        self.quietly(self.kserve.step)
        split = self.split()
        self.said_ready |= {name for name in list(split)[1:] if name not in self.kserve.broken}

    @rule(version=VERSIONS, up=st.booleans())
    def pods_change(self, version: int, up: bool) -> None:
        (self.kserve.broken.discard if up else self.kserve.broken.add)(name_of(version))

    @rule(fault=FAULTS)
    def harm(self, fault: Fault) -> None:
        self.cluster.faults.append(fault)

    @rule(percent=st.integers(0, 60))
    def a_person_sets_a_weight(self, percent: int) -> None:
        def change(spec: dict[str, list[dict[str, int]]]) -> None:
            if spec.get("canary"):
                spec["canary"][0]["trafficPercent"] = percent

        self.quietly(lambda: self.kserve.edit(change))
        for name in self.split():
            self.asked[name] = max(self.asked.get(name, 0), percent)

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def follow(self, seconds: float) -> None:
        self.now += seconds
        before = self.split()
        self.follower.reconcile()
        after = self.split()
        primary = next(iter(after))
        if primary != next(iter(before)):
            assert primary in self.said_ready, f"{primary} was made the predictor before KServe said that it is ready"
        self.said_ready &= set(after)

    @invariant()
    def weights_are_those_asked_for(self) -> None:
        split = self.split()
        assert sum(split.values()) == 100
        assert all(percent >= 0 for percent in split.values())
        for name, percent in list(split.items())[1:]:
            assert percent <= self.asked.get(name, 0), f"{name} has {percent} % and was never to get more than it"

    def split(self) -> dict[str, int]:
        faults, self.cluster.faults = self.cluster.faults, type(self.cluster.faults)()
        found = self.kserve.split()
        self.cluster.faults = faults
        return found

    def quietly(self, act: object) -> None:
        """KServe and people have connections of their own: the follower's faults are not theirs."""
        faults, self.cluster.faults = self.cluster.faults, type(self.cluster.faults)()
        act()  # type: ignore[operator]
        self.cluster.faults = faults

    def teardown(self) -> None:
        """Everything works again: it rests where the controller wants it, and says so."""
        self.cluster.faults.clear()
        self.kserve.broken.clear()
        for _ in range(12):
            self.now += 11
            self.deal_with_commands()
            self.kserve.step()
            self.follower.reconcile()
        traffic, split = self.traffic, self.split()
        wanted = {name_of(traffic.stable)} | {
            name_of(v) for v in (traffic.canary, traffic.control, *traffic.warm) if v is not None
        }
        assert set(split) == wanted
        assert next(iter(split)) == name_of(traffic.stable)
        assert all(version_of(name) is not None for name in split)
        (report,) = self.board.routers("wines", self.now)
        assert (report.generation, report.problem) == (traffic.generation, "")
        arms = {report.arm: report.phase for report in self.board.arms("wines", traffic.rollout)}
        if traffic.rollout and "failed" not in arms.values():
            assert arms == {"canary": "ready", "control": "ready"}
        self.kserve.client.close()


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
