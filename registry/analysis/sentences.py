"""Says in one sentence what a guard saw and why it stands as it does. Called by `registry.analysis.results`."""

from __future__ import annotations

from collections.abc import Sequence

from registry.analysis.verdict import GuardResult, GuardState
from registry.plan import LatencyGuard, RateGuard, RewardGuard

DOES = {"error": "fails", "abstained": "abstains on", "empty": "finds nothing for"}

NO_CANARY = "no canary answers yet"
NO_CONTROL = "no control answers yet"
NO_GUARDS = "every guard is switched off: nothing is compared"
NO_WEIGHTS = (
    "reward: no feedback can earn anything, as every weight in feedback.reward is 0 or missing; "
    "weigh an event there, or set rollout.guards.reward to null"
)


def percent(ratio: float) -> str:
    return f"{_digits(100 * ratio)} %"


def points(ratio: float) -> str:
    """A difference of two shares."""
    return f"{_digits(100 * ratio)} {'point' if round(100 * ratio, 6) == 1 else 'points'}"


def ms(value: float | None) -> str:
    return "?" if value is None else f"{_digits(value)} ms"


def _digits(value: float) -> str:
    """Three figures at most, and no more than two decimals: 9.83, 12.5, 240, 0.05."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")


def risk(fails_at: float) -> str:
    return f"risk of a false alarm under {percent(1 / fails_at)}"


def of_share(guard: RateGuard, result: GuardResult) -> str:
    if result.canary is None or result.control is None:
        return f"{result.name}: no answers of both arms yet"
    does, what = DOES.get(result.name, "has"), "requests" if result.name in DOES else "answers"
    seen = f"canary {does} {percent(result.canary)} of {what}, control {percent(result.control)}"
    return f"{result.name}: {seen}; {_share_reason(guard, result)}"


def _share_reason(guard: RateGuard, result: GuardResult) -> str:
    if result.state == "Fail":
        return f"more than the {points(guard.margin)} allowed ({risk(result.fails_at)})"
    if guard.pass_margin is None:
        return "not shown to be worse"
    if result.state == "Pass":
        return f"a rise of {points(guard.pass_margin)} is ruled out"
    return f"a rise of {points(guard.pass_margin)} is not ruled out yet"


def of_latency(guard: LatencyGuard, result: GuardResult) -> str:
    if result.canary is None or result.control is None:
        return f"{result.name}: no answers of both arms yet"
    seen = f"{result.name}: canary takes {ms(result.canary)}, control {ms(result.control)}"
    if result.state == "Fail":
        slack = f" (and {ms(guard.slack_ms)})" if guard.slack_ms else ""
        return f"{seen}; more than the {percent(guard.margin)}{slack} longer that is allowed ({risk(result.fails_at)})"
    if guard.pass_margin is None:
        return f"{seen}; not shown to be slower"
    ruled_out = "is ruled out" if result.state == "Pass" else "is not ruled out yet"
    return f"{seen}; taking {percent(guard.pass_margin)} longer {ruled_out}"


def of_reward(guard: RewardGuard, result: GuardResult, any_feedback: bool) -> str:
    if result.canary is None or result.control is None:
        return "reward: no answer of both arms has waited long enough for its feedback yet"
    if not any_feedback:
        return "reward: no answer got any feedback; send feedback, or set rollout.guards.reward to null"
    seen = f"reward: canary earns {result.canary:.3g} per request, control {result.control:.3g}"
    if result.state == "Fail":
        return f"{seen}; less by more than the {percent(guard.margin)} allowed ({risk(result.fails_at)})"
    if guard.superiority:
        shown = "shown" if result.superior else "not shown yet"
        more = f"more by over {percent(guard.superiority_margin)}" if guard.superiority_margin else "more"
        return f"{seen}; that the canary earns {more} is {shown}"
    if guard.pass_margin is None:
        return f"{seen}; not shown to be worse"
    ruled_out = "is ruled out" if result.state == "Pass" else "is not ruled out yet"
    return f"{seen}; a loss of {percent(guard.pass_margin)} {ruled_out}"


def of_all(state: GuardState, guards: Sequence[GuardResult], canary: int, control: int) -> str:
    """The worst guards' own sentence where one decides; else what is still open."""
    after = f"after {canary:,} canary and {control:,} control requests"
    named = [guard for guard in guards if guard.state == state]
    if state == "Pass":
        return f"no worse than the control by {', '.join(g.name for g in named)} {after}"
    if state == "Inconclusive" and len(named) > 1:
        return f"more evidence is needed for {', '.join(g.name for g in named)} {after}"
    return "; ".join(guard.sentence for guard in named)
