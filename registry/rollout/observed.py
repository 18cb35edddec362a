"""What runs and what the evidence says: the only way in which the machine itself moves a rollout.

Order of concerns in every phase: a fault of the canary acts at once, paused or not; a pause holds the rest; then what
was asked for is compared with what was seen; the deadline comes last. Missing evidence holds and never passes. What is
not the canary's fault (its control, the routers) ends a rollout without holding it against the version.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.rollout import moves
from registry.rollout.draft import CONTROLLER, By, Draft
from registry.rollout.state import MAX_GAP_S, Observed, Rollout
from registry.traffic import ArmReport, TrialArm

TICK_S = 5.0
"""How often watched time is written down: a state that is looked at is not stored anew each time."""


@dataclass(frozen=True, slots=True)
class Sight:
    """An observation of the current rollout. `elapsed_s`: how long its phase was watched."""

    event: Observed
    rollout: Rollout
    elapsed_s: float

    def arm(self, arm: TrialArm) -> ArmReport | None:
        """None where nothing is known of it; reports on the arms of another rollout say nothing."""
        report = self.event.arms.get(arm)
        return report if report is not None and report.rollout == self.rollout.id else None

    def ready(self, arm: TrialArm) -> bool:
        report = self.arm(arm)
        return report is not None and report.phase == "ready"

    def failed(self, arm: TrialArm) -> str | None:
        report = self.arm(arm)
        return report.reason or "no reason given" if report is not None and report.phase == "failed" else None

    def fault(self) -> str | None:
        """Why the canary must go at once."""
        reason, verdict = self.failed("canary"), self.event.verdict
        if reason is not None:
            return f"the canary's process failed: {reason}"
        if self.event.lost:
            return "a router lost a replica of the canary"
        return verdict.sentence if verdict is not None and verdict.state == "Fail" else None

    def holdup(self) -> str | None:
        """What has to happen before the arms may get users; None: nothing."""
        for arm in ("canary", "control"):
            if not self.ready(arm):
                return f"the {arm} is not ready" + (f": {reason}" if (reason := self.failed(arm)) else "")
        if not self.event.routers:
            return "no router is live"
        for router in self.event.routers:
            if router.problem:
                return f"router {router.router} cannot follow: {router.problem}"
            if router.generation < self.rollout.generation:
                return f"router {router.router} has not heard of the arms"
        return None

    def requests(self) -> int:
        """Canary answers in this step."""
        verdict = self.event.verdict
        return 0 if verdict is None else verdict.canary_requests - self.rollout.requests_before

    def by(self, why: str) -> By:
        return By(CONTROLLER, why, self.event.verdict)


def on_observed(draft: Draft, event: Observed) -> None:
    rollout = draft.state.rollout
    if rollout is None or event.rollout not in (0, rollout.id):
        return
    if not rollout.paused:
        rollout = _count(draft, rollout)
    sight = Sight(event, rollout, rollout.elapsed_s + max(0.0, draft.now - rollout.observed_s))
    phases = {"loading": _loading, "shadow": _shadow, "step": _step, "baking": _baking}
    phases[rollout.phase](draft, sight)


def _count(draft: Draft, rollout: Rollout) -> Rollout:
    gap = draft.now - rollout.observed_s
    if 0 <= gap < TICK_S:
        return rollout
    elapsed_s = rollout.elapsed_s + min(max(gap, 0.0), MAX_GAP_S)
    return draft.set_rollout(rollout, elapsed_s=elapsed_s, observed_s=draft.now)


def _loading(draft: Draft, sight: Sight) -> None:
    rollout, reason = sight.rollout, sight.failed("canary")
    if reason is not None:
        moves.roll_back(draft, rollout, By(CONTROLLER, f"could not be loaded: {reason}"), "refused")
        return
    if rollout.paused:
        return
    holdup = sight.holdup()
    if holdup is None:
        draft.tell("ready", By(CONTROLLER, "both arms run, and every router knows them"), rollout.version)
        rollout = draft.set_rollout(rollout, ready=True)
        if rollout.plan.shadow_percent > 0:
            draft.enter(rollout, phase="shadow")
        else:
            _enter_step(draft, sight, 0)
    elif sight.elapsed_s >= rollout.plan.load_deadline_s:
        limit = f"within {rollout.plan.load_deadline_s:g} s"
        if sight.ready("canary"):
            moves.end(draft, rollout, "aborted", By(CONTROLLER, f"could not be compared {limit}: {holdup}"))
        else:
            moves.roll_back(draft, rollout, By(CONTROLLER, f"could not be loaded {limit}: {holdup}"), "refused")


def _shadow(draft: Draft, sight: Sight) -> None:
    """Answers that nobody sees. Enough of them is all that is asked for; a canary that fails most of them is done."""
    step = sight.rollout.plan.step
    failures = sight.event.shadow_failures
    answers = sight.event.shadow_requests - failures
    fault = sight.fault()
    if fault is None and failures >= step.min_requests and failures > answers:
        fault = f"{failures} of {failures + answers} mirrored requests had no answer"
    if _held(draft, sight, fault):
        return
    if answers >= step.min_requests and sight.elapsed_s >= step.min_s and sight.ready("canary"):
        _enter_step(draft, sight, 0)
    else:
        _overdue(draft, sight, f"{answers} mirrored answers of {step.min_requests}")


def _step(draft: Draft, sight: Sight) -> None:
    rollout, step, verdict = sight.rollout, sight.rollout.plan.step, sight.event.verdict
    if _held(draft, sight, sight.fault()):
        return
    passed = verdict is not None and verdict.state == "Pass" and sight.requests() >= step.min_requests
    if passed and verdict is not None and sight.elapsed_s >= step.min_s and _both_ready(sight):
        if rollout.step + 1 < len(rollout.plan.steps_percent):
            _enter_step(draft, sight, rollout.step + 1)
        else:
            moves.promote(draft, rollout, sight.by(f"every step passed: {verdict.sentence}"))
    else:
        _overdue(draft, sight, "no evidence" if verdict is None else verdict.sentence)


def _held(draft: Draft, sight: Sight, fault: str | None) -> bool:
    """A fault ends the trial; a pause stops here."""
    rollout = sight.rollout
    if fault is not None:
        moves.roll_back(draft, rollout, sight.by(fault))
        return True
    _watch_control(draft, sight)
    return rollout.paused


def _overdue(draft: Draft, sight: Sight, seen: str) -> None:
    rollout = draft.state.rollout
    assert rollout is not None, "nothing has ended it since the phase was chosen"
    if sight.elapsed_s < rollout.plan.step.deadline_s:
        return
    if sight.failed("control") is not None or (sight.ready("canary") and not sight.ready("control")):
        moves.end(draft, rollout, "aborted", sight.by(f"no control to compare with by the deadline: {seen}"))
    else:
        moves.roll_back(draft, rollout, sight.by(f"no verdict by the deadline: {seen}"))


def _enter_step(draft: Draft, sight: Sight, step: int) -> None:
    rollout = draft.state.rollout
    assert rollout is not None, "a step belongs to a rollout"
    plan, verdict = rollout.plan, sight.event.verdict
    requests = 0 if verdict is None else verdict.canary_requests
    rollout = draft.enter(rollout, phase="step", step=step, requests_before=requests)
    what = f"step {step + 1} of {len(plan.steps_percent)}, {plan.steps_percent[step]:g} %"
    draft.tell("step", sight.by(what if verdict is None else f"{what}: {verdict.sentence}"), rollout.version)


def _baking(draft: Draft, sight: Sight) -> None:
    """The canary arm is a sample of what is stable now: its crash tells as much as its numbers."""
    rollout, fault = sight.rollout, sight.fault()
    if fault is not None and not rollout.alarm_only:
        moves.roll_back(draft, rollout, sight.by(fault))
        return
    if fault is not None and not rollout.alarmed:
        draft.tell("alarm", sight.by(fault), rollout.version)
        draft.tag(rollout.version, "alarm", sight.by(fault))
        rollout = draft.set_rollout(rollout, alarmed=True)
    rollout = _watch_control(draft, sight)
    if rollout.paused:
        return
    if rollout.ready:
        if sight.elapsed_s >= rollout.plan.bake_s:
            moves.baked(draft, rollout, sight.by("promoted for good"))
    elif (holdup := sight.holdup()) is None:
        draft.tell("ready", By(CONTROLLER, "both arms run, and every router knows them"), rollout.version)
        draft.enter(rollout, ready=True)
    elif sight.elapsed_s >= rollout.plan.load_deadline_s:
        moves.baked(draft, rollout, By(CONTROLLER, f"not compared with version {rollout.base}: {holdup}"))


def _watch_control(draft: Draft, sight: Sight) -> Rollout:
    """A control that fails says nothing of the canary: told once, and waited for."""
    rollout = draft.state.rollout
    assert rollout is not None, "called before anything ends it"
    reason = sight.failed("control")
    if reason is not None and not rollout.control_failed:
        draft.tell("note", By(CONTROLLER, f"the control failed, nothing can be compared: {reason}"), rollout.version)
        return draft.set_rollout(rollout, control_failed=True)
    if rollout.control_failed and sight.ready("control"):
        return draft.set_rollout(rollout, control_failed=False)
    return rollout


def _both_ready(sight: Sight) -> bool:
    return sight.ready("canary") and sight.ready("control")
