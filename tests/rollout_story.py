"""An app's rollout told event by event, for the tests of the state machine: who calls `advance`, with what, and what
came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from registry.analysis.verdict import GuardResult, GuardState, Verdict
from registry.plan import RolloutPlan, StepPlan
from registry.rollout import (
    AliasesSeen,
    AliasWrite,
    AppState,
    CommandSeen,
    Event,
    Observed,
    Rollout,
    Written,
    advance,
    traffic_of,
)
from registry.traffic import ArmPhase, ArmReport, Command, Entry, RouterReport, Traffic, TrialArm, Verb

PLAN = RolloutPlan(
    steps_percent=(1, 50),
    step=StepPlan(min_requests=10, min_s=2, deadline_s=100),
    bake_s=30,
    bake_percent=5,
    load_deadline_s=20,
)


def verdict(state: GuardState, requests: int = 0) -> Verdict:
    guard = GuardResult("error", state, f"errors: {state}", canary=0.1, control=0.0, evidence=float("inf"))
    return Verdict(state, f"the evidence says {state}", (guard,), requests, requests)


class Story:
    """`aliases` is MLflow. `sync` looks at it and makes the pending writes, as the controller does each turn."""

    def __init__(self, stable: int | None = 1, plan: RolloutPlan = PLAN, refused: Mapping[int, str] | None = None):
        self.state = AppState("shop")
        self.now = 1_000_000.0
        self.plan = plan
        self.refused = dict(refused or {})
        self.aliases: dict[str, int | None] = {"stable": stable, "canary": None, "previous": None}
        self.entries: list[Entry] = []
        self.tags: dict[int, dict[str, str]] = {}
        self.requests = 0
        if stable is not None:
            self.sync()
            self.told()

    # --- events ---

    def event(self, event: Event) -> tuple[Entry, ...]:
        self.state, entries = advance(self.state, event, self.now)
        self.entries += entries
        return entries

    def look(self) -> tuple[Entry, ...]:
        named = [v for v in (self.aliases["stable"], self.aliases["canary"]) if v is not None]
        plans = {v: self.plan for v in named if v not in self.refused}
        refused = {v: self.refused[v] for v in named if v in self.refused}
        return self.event(AliasesSeen(self.aliases["stable"], self.aliases["canary"], plans, refused))

    def put(self) -> Written:
        """Make the pending writes in MLflow; what the controller would report."""
        done: list[AliasWrite] = []
        dropped: list[AliasWrite] = []
        for write in self.state.alias_writes:
            applies = write.applies_to(self.aliases[write.alias])
            (done if applies else dropped).append(write)
            if applies:
                self.aliases[write.alias] = write.version
        for tags in self.state.tag_writes:
            self.tags.setdefault(tags.version, {}).update(tags.tags)
        return Written(tuple(done), self.state.tag_writes, tuple(dropped))

    def sync(self) -> None:
        self.look()
        self.event(self.put())
        assert self.look() == ()

    def person(self, alias: str, version: int | None) -> tuple[Entry, ...]:
        self.aliases[alias] = version
        return self.look()

    def command(self, verb: Verb, version: int | None = None, refused: str | None = None) -> tuple[Entry, ...]:
        plan = self.plan if refused is None and version is not None and version < 100 else None
        return self.event(
            CommandSeen(Command("shop", verb, "kim", f"kim wants {verb}", self.now, version, 7), plan, refused)
        )

    def observe(
        self,
        after_s: float = 1.0,
        *,
        canary: ArmPhase | None = "ready",
        control: ArmPhase | None = "ready",
        says: GuardState | None = None,
        more: int = 0,
        routers: tuple[RouterReport, ...] | None = None,
        **others: Any,
    ) -> tuple[Entry, ...]:
        """Time passes and the controller looks at what runs; `more` canary requests were answered meanwhile."""
        self.now += after_s
        self.requests += more
        number = self.state.rollout.id if self.state.rollout else 0
        phases: dict[TrialArm, ArmPhase | None] = {"canary": canary, "control": control}
        arms = {arm: ArmReport("shop", number, arm, phase, "why") for arm, phase in phases.items() if phase is not None}
        seen = None if says is None else verdict(says, self.requests)
        live = (self.router(),) if routers is None else routers
        return self.event(Observed(arms, live, seen, rollout=number, **others))

    def router(self, lag: int = 0, problem: str = "") -> RouterReport:
        return RouterReport("r1", "shop", self.state.generation - lag, self.state.stable, problem, self.now)

    # --- stages ---

    def on_trial(self, version: int = 2) -> Story:
        self.person("canary", version)
        return self

    def stepping(self, version: int = 2) -> Story:
        self.on_trial(version).observe()
        return self.told()

    def baking(self, version: int = 2) -> Story:
        self.stepping(version)
        while self.rollout.trial:
            self.observe(5, says="Pass", more=10)
        self.sync()
        return self.told()

    def told(self) -> Story:
        """Forget the entries so far."""
        self.entries = []
        return self

    # --- what is ---

    @property
    def rollout(self) -> Rollout:
        assert self.state.rollout is not None
        return self.state.rollout

    @property
    def traffic(self) -> Traffic:
        traffic = traffic_of(self.state)
        assert traffic is not None
        return traffic

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries]

    def settle(self) -> dict[Literal["stable", "canary", "previous"], int | None]:
        self.sync()
        return {
            "stable": self.aliases["stable"],
            "canary": self.aliases["canary"],
            "previous": self.aliases["previous"],
        }
