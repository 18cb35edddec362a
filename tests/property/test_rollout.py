"""The state machine of rollouts under generated sequences: persons who move aliases at any time, a machine whose writes
are late, lost, or overtaken, crashes anywhere, events that come twice or not at all, and clocks that step."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from registry.analysis.verdict import GuardState, Verdict
from registry.plan import RolloutPlan, StepPlan
from registry.rollout import (
    AliasesSeen,
    AliasWrite,
    AppState,
    CommandSeen,
    Event,
    Observed,
    Written,
    advance,
    state_from_json,
    state_to_json,
    traffic_of,
)
from registry.rollout.state import AliasName
from registry.traffic import ArmReport, Command, Entry, RouterReport, TrialArm, Verb
from tests.rollout_checks import check_generation, check_state

MIN_REQUESTS = 5
STEP = StepPlan(min_requests=MIN_REQUESTS, min_s=2, deadline_s=40)
PLANS = [
    RolloutPlan(steps_percent=(1, 50), step=STEP, bake_s=10, load_deadline_s=20),
    RolloutPlan(steps_percent=(25,), step=STEP, bake_s=0, shadow_percent=10, load_deadline_s=20),
    RolloutPlan(steps_percent=(50,), step=STEP, bake_s=10, bake_percent=50, load_deadline_s=20),
]
REFUSED = {5: "altered"}
VERSIONS = st.sampled_from([1, 2, 3, 4, 5])
ALIASES = st.sampled_from([None, 1, 2, 3, 4, 5])
TRIED: tuple[AliasName, AliasName] = ("stable", "canary")


def plan_of(version: int) -> RolloutPlan:
    return PLANS[version % len(PLANS)]


@dataclass
class Alias:
    """One alias in MLflow. `acted`: the machine has seen that it stands there."""

    value: int | None = None
    person: bool = False
    acted: bool = True


class RolloutMachine(RuleBasedStateMachine):
    """`state` is what was recorded last; `recorded` sees every step and checks it by what is known outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.state = AppState("shop")
        self.now = 1_000_000.0
        self.mlflow: dict[str, Alias] = {name: Alias() for name in ("stable", "canary", "previous")}
        self.ours: dict[str, set[int | None]] = {name: set() for name in TRIED}
        self.requests: dict[int, int] = {}
        self.step_began: tuple[int, int, int] | None = None
        self.promoted_by_machine: set[int] = set()
        self.latched: set[int] = set()
        self.pin: int | None = None
        self.old_written: list[Written] = []
        self.old_observed: list[Observed] = []

    @initialize(stable=st.sampled_from([None, 1, 1, 1]))
    def begin(self, stable: int | None) -> None:
        if stable is not None:
            self.move("stable", stable)

    # --- what a person does ---

    def move(self, alias: AliasName, version: int | None) -> None:
        if self.mlflow[alias].value != version:
            self.mlflow[alias] = Alias(version, person=True, acted=False)

    @rule(version=ALIASES)
    def person_moves_canary(self, version: int | None) -> None:
        self.move("canary", version)

    @rule(version=ALIASES)
    def person_moves_stable(self, version: int | None) -> None:
        self.move("stable", version)

    @rule(version=ALIASES)
    def person_moves_previous(self, version: int | None) -> None:
        self.move("previous", version)

    @rule(
        what=st.one_of(
            st.tuples(st.sampled_from(["start", "switch"]), VERSIONS),
            st.tuples(st.sampled_from(["pause", "resume", "promote", "abort", "rollback"]), st.none()),
            st.tuples(st.sampled_from(["promote", "abort", "rollback", "start"]), st.none() | VERSIONS),
        ),
        crash=st.booleans(),
    )
    def person_commands(self, what: tuple[Verb, int | None], crash: bool) -> None:
        self.command(*what, crash=crash)

    def command(self, verb: Verb, version: int | None, crash: bool) -> None:
        known = version is not None and verb in ("start", "switch")
        event = CommandSeen(
            Command("shop", verb, "kim", "wants it", self.now, version),
            plan_of(version) if known and version is not None and version not in REFUSED else None,
            REFUSED.get(version) if known and version is not None else None,
        )
        if crash:
            advance(self.state, event, self.now)  # never recorded
        before = self.state
        entries = self.happens(event)
        refused = [e for e in entries if e.kind == "refused-command"]
        assert not refused or (self.state is before and len(entries) == 1)
        again, told = advance(self.state, event, self.now)
        assert again is self.state, "a command that comes twice does nothing more"
        assert [e.kind for e in told] == ["refused-command"]

    # --- what the controller does ---

    @rule(crash=st.booleans())
    def look(self, crash: bool) -> None:
        event = self.aliases_seen()
        if crash:
            advance(self.state, event, self.now)
            return
        self.happens(event)
        again, entries = advance(self.state, event, self.now)
        assert again is self.state, "a second look at the same changes nothing"
        assert entries == ()

    def aliases_seen(self) -> AliasesSeen:
        stable, canary = self.mlflow["stable"].value, self.mlflow["canary"].value
        named = [v for v in (stable, canary) if v is not None]
        plans = {v: plan_of(v) for v in named if v not in REFUSED}
        return AliasesSeen(stable, canary, plans, {v: REFUSED[v] for v in named if v in REFUSED})

    @rule(count=st.integers(0, 3), crash=st.booleans())
    def put(self, count: int, crash: bool) -> None:
        """Make some of the pending writes; with a crash they are made and nobody knows."""
        done: list[AliasWrite] = []
        dropped: list[AliasWrite] = []
        for write in self.state.alias_writes[:count]:
            (done if self.put_one(write) else dropped).append(write)
        written = Written(tuple(done), self.state.tag_writes[:count], tuple(dropped))
        if not crash:
            self.old_written.append(written)
            self.happens(written)

    def put_one(self, write: AliasWrite) -> bool:
        alias = self.mlflow[write.alias]
        if alias.value == write.version:
            return True
        applies = write.applies_to(alias.value)
        if write.alias in TRIED:
            assert not (applies and self.by_a_person(write.alias)), "a person's move is never overwritten unseen"
            assert applies or alias.person, "our own earlier write does not stop a later one"
        if applies:
            self.mlflow[write.alias] = Alias(write.version)
        return applies

    @precondition(lambda self: self.old_written)
    @rule(data=st.data())
    def written_twice(self, data: st.DataObject) -> None:
        written = data.draw(st.sampled_from(self.old_written[-5:]))
        still = [w for w in (*written.aliases, *written.dropped) if w in self.state.alias_writes]
        if not still:  # the same write, owed once more, is another one
            self.happens(replace(written, tags=()))

    @rule(
        canary=st.sampled_from(["ready", "ready", "ready", "deploying", "failed", None]),
        control=st.sampled_from(["ready", "ready", "ready", "deploying", "failed", None]),
        says=st.sampled_from(["Pass", "Pass", "Inconclusive", "Error", "Fail", None]),
        more=st.integers(0, 12),
        lost=st.sampled_from([False, False, False, False, True]),
        lag=st.sampled_from([0, 0, 1]),
        after_s=st.sampled_from([0.0, 0.5, 3.0, 3.0, 30.0]),
        repeat=st.integers(1, 2),
    )
    def observe(
        self,
        canary: str | None,
        control: str | None,
        says: GuardState | None,
        more: int,
        lost: bool,
        lag: int,
        after_s: float,
        repeat: int,
    ) -> None:
        self.now += after_s
        number = self.state.rollout.id if self.state.rollout else 0
        self.requests[number] = self.requests.get(number, 0) + more
        phases: dict[TrialArm, str | None] = {"canary": canary, "control": control}
        arms = {arm: ArmReport("shop", number, arm, phase, "why") for arm, phase in phases.items() if phase}  # type: ignore[arg-type]
        router = RouterReport("r", "shop", self.state.generation - lag, self.state.stable, "", self.now)
        seen = None if says is None else Verdict(says, says, (), self.requests[number], self.requests[number])
        event = Observed(arms, (router,), seen, lost, self.requests[number], 0, rollout=number)
        self.old_observed.append(event)
        for _ in range(repeat):
            self.happens(event)

    @rule(times=st.integers(1, 6))
    def all_is_well(self, times: int) -> None:
        """Without it few sequences would get as far as a promotion."""
        for _ in range(times):
            self.observe("ready", "ready", "Pass", 6, False, 0, 3.0, 1)

    @rule(
        says=st.sampled_from(["Pass", "Pass", "Inconclusive", "Error", "Fail", None]),
        more=st.sampled_from([0, 1, 4, 6]),
        times=st.integers(1, 3),
    )
    def arms_run(self, says: GuardState | None, more: int, times: int) -> None:
        for _ in range(times):
            self.observe("ready", "ready", says, more, False, 0, 3.0, 1)

    @rule(version=VERSIONS, times=st.integers(0, 6), writes=st.booleans(), person=st.booleans())
    def canary_goes_its_way(self, version: int, times: int, writes: bool, person: bool) -> None:
        if person:
            self.move("canary", version)
            self.look(crash=False)
        else:
            self.command("start", version, crash=False)
        self.all_is_well(times)
        if writes:
            self.put(count=3, crash=False)

    @precondition(lambda self: self.old_observed)
    @rule(data=st.data())
    def observed_late(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.old_observed[-6:]))
        if event.rollout:
            self.happens(event)

    @rule(step_s=st.sampled_from([-86_400.0, -100.0, -0.1, 100.0, 86_400.0]))
    def clock_steps(self, step_s: float) -> None:
        self.now += step_s

    @rule()
    def quiet(self) -> None:
        """Nobody does anything any more but the controller: MLflow and the state agree in the end."""
        for _ in range(3):
            self.look(crash=False)
            self.put(count=9, crash=False)
        self.look(crash=False)
        state, rollout = self.state, self.state.rollout
        assert state.alias_writes == ()
        assert state.tag_writes == ()
        stable, canary = self.mlflow["stable"], self.mlflow["canary"]
        if state.stable is None:
            assert canary.value is None or canary.person
            return
        assert canary.value == (rollout.version if rollout is not None and rollout.trial else None)
        assert stable.value == state.stable or (stable.person and stable.value in (None, *REFUSED))

    # --- what must hold ---

    def by_a_person(self, alias: AliasName) -> bool:
        """It stands where only a person can have put it, and the machine has not acted upon it."""
        seen = self.state.seen_stable if alias == "stable" else self.state.seen_canary
        cell = self.mlflow[alias]
        return cell.person and not cell.acted and cell.value != seen and cell.value not in self.ours[alias]

    def happens(self, event: Event) -> tuple[Entry, ...]:
        before = self.state
        after, entries = advance(before, event, self.now)
        assert after is before or after != before
        assert after is not before or all(e.kind == "refused-command" for e in entries)
        check_generation(before, after)
        for entry in entries:
            json.dumps(dict(entry.details), allow_nan=False)
        if isinstance(event, AliasesSeen):
            self.check_look(before, after, entries)
        elif isinstance(event, CommandSeen):
            self.check_command(event, before, after, entries)
        elif isinstance(event, Observed):
            self.check_observed(before, after, event, entries)
        else:
            assert entries == ()
            assert traffic_of(after) == traffic_of(before)
        self.latch(entries, isinstance(event, Observed))
        self.state = state_from_json(json.loads(json.dumps(state_to_json(after)))) if after is not before else before
        assert self.state == after, "what is stored is what comes back"
        self.follow_writes()
        self.follow_steps(before, event)
        return entries

    def check_look(self, before: AppState, after: AppState, entries: tuple[Entry, ...]) -> None:
        stable, canary = self.mlflow["stable"], self.mlflow["canary"]
        stable_moved, canary_moved = self.by_a_person("stable"), self.by_a_person("canary")
        if not stable_moved:
            assert after.stable == before.stable, "our own writes switch nothing"
        if not stable_moved and not canary_moved:
            assert after.rollout == before.rollout, "our own writes start and end nothing"
            assert entries == ()
        if stable_moved:
            stable.acted, self.ours["stable"] = True, set()
            if stable.value is not None and stable.value not in REFUSED:
                assert after.stable == stable.value, "a person's stable serves at once"
                self.pin = self.pinned(before, stable.value)
        if canary_moved and after.stable is not None:
            canary.acted, self.ours["canary"] = True, set()
            trial = after.rollout is not None and after.rollout.trial
            good = canary.value not in (None, after.stable, *REFUSED)
            assert trial == good
            assert not good or (after.rollout is not None and after.rollout.version == canary.value)
        if any(e.kind == "started" for e in entries):
            assert canary_moved
            self.pin = None

    def pinned(self, before: AppState, version: int) -> int | None:
        """A person set stable to `version`: there it stays, unless that is only where a trial began that goes on."""
        goes_on = before.stable == version and before.rollout is not None and before.rollout.trial
        return None if goes_on else version

    def check_command(self, event: CommandSeen, before: AppState, after: AppState, entries: tuple[Entry, ...]) -> None:
        kinds = [e.kind for e in entries]
        if event.command.verb == "switch" and kinds != ["refused-command"]:
            assert after.stable == event.command.version
            assert after.stable is not None
            self.pin = self.pinned(before, after.stable)
        elif {"started", "promoted", "rolled-back"} & set(kinds):
            self.pin = None

    def check_observed(self, before: AppState, after: AppState, event: Observed, entries: tuple[Entry, ...]) -> None:
        assert all(e.who == "controller" for e in entries)
        assert after.rollouts == before.rollouts, "the machine starts nothing by itself"
        old, new = before.rollout, after.rollout
        if old is None:
            assert after is before
            return
        promoted = old.trial and after.stable == old.version
        stepped = new is not None and old.phase == "step" and new.phase == "step" and new.step > old.step
        if promoted or stepped:
            assert old.phase == "step"
            assert not old.paused
            assert self.step_began is not None
            began_id, began_step, began_requests = self.step_began
            assert (began_id, began_step) == (old.id, old.step)
            assert event.verdict is not None, "nothing is promoted on missing evidence"
            assert event.verdict.state == "Pass", "nothing is promoted without a Pass"
            assert event.verdict.canary_requests - began_requests >= MIN_REQUESTS
            assert not event.lost
            assert event.arms["canary"].phase == "ready"
        if stepped and new is not None:
            assert new.step == old.step + 1
        if promoted:
            assert old.step == len(old.plan.steps_percent) - 1
            self.promoted_by_machine.add(old.id)
        elif after.stable != before.stable:
            assert old.id in self.promoted_by_machine, "what a person decided is not undone"
            assert not old.trial
            assert after.stable == old.base

    def latch(self, entries: tuple[Entry, ...], tried: bool) -> None:
        for entry in entries:
            if entry.kind == "rolled-back" or (entry.kind == "refused" and tried):
                assert entry.version is not None
                self.latched.add(entry.version)
            elif entry.kind in ("started", "switched"):
                assert ("quarantine_lifted" in entry.details) == (entry.version in self.latched)
                self.latched.discard(entry.version or 0)

    def follow_writes(self) -> None:
        """Where our writes can have put an alias since none was pending, or since a person's move was acted upon."""
        for alias in TRIED:
            write = next((w for w in self.state.alias_writes if w.alias == alias), None)
            if write is None:
                self.ours[alias] = set()
            else:
                seen = self.state.seen_stable if alias == "stable" else self.state.seen_canary
                self.ours[alias] |= {write.version, seen}

    def follow_steps(self, before: AppState, event: Event) -> None:
        old, new = before.rollout, self.state.rollout
        if new is not None and new.phase == "step" and (old is None or (old.phase, old.step) != (new.phase, new.step)):
            verdict = event.verdict if isinstance(event, Observed) else None
            self.step_began = (new.id, new.step, 0 if verdict is None else verdict.canary_requests)

    @invariant()
    def state_is_sound(self) -> None:
        check_state(self.state, self.latched)

    @invariant()
    def a_persons_stable_stands(self) -> None:
        assert self.pin is None or self.state.stable == self.pin


RolloutMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
TestRollout = RolloutMachine.TestCase
