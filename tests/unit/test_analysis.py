"""The judgement of a canary: each guard, its sentences, and the edges of the evidence. All requests are made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.analysis import Analysis, GuardResult, GuardState, Verdict
from registry.analysis.guards import RISK_SHARES
from registry.plan import Guards, LatencyGuard, RateGuard, RewardGuard, RolloutPlan

RANGE = (-0.5, 1.0)
OFF: dict[str, Any] = dict.fromkeys(Guards.model_fields)


def plan_with(**guards: Any) -> RolloutPlan:
    """Only these guards are on."""
    return RolloutPlan(guards=Guards(**{**OFF, **guards}))


def spread(n: int, ones: int, letter: str) -> str:
    """n outcomes, `ones` of them the letter, evenly spread."""
    return "".join(letter if (i * ones) % n < ones else "a" for i in range(n))


def fill(analysis: Analysis, canary: str, control: str, canary_ms: float = 20.0, control_ms: float = 20.0) -> None:
    analysis.add("canary", [canary_ms] * len(canary), canary)
    analysis.add("control", [control_ms] * len(control), control)


def guard_of(verdict: Verdict, name: str) -> GuardResult:
    return next(guard for guard in verdict.guards if guard.name == name)


def judged(plan: RolloutPlan, canary: str, control: str, **times: float) -> Verdict:
    analysis = Analysis(plan, RANGE)
    fill(analysis, canary, control, **times)
    return analysis.verdict()


@pytest.mark.parametrize(
    ("name", "letter"), [*(("error", letter) for letter in "etoc"), ("abstained", "n"), ("empty", "z")]
)
def test_a_share_that_rises_fails(name: str, letter: str) -> None:
    guard = Guards.model_fields[name].default
    verdict = judged(plan_with(**{name: guard}), spread(400, 80, letter), spread(400, 2, letter))
    assert verdict.state == "Fail"
    (result,) = verdict.guards
    assert (result.canary, result.control) == (0.2, 0.005)
    assert result.evidence >= result.fails_at == pytest.approx(100)
    assert result.failed_after is not None
    assert result.failed_after < 200


@pytest.mark.parametrize(("name", "letter"), [("error", "e"), ("abstained", "n"), ("empty", "z")])
def test_equal_shares_pass_when_a_rise_is_ruled_out_and_not_before(name: str, letter: str) -> None:
    plan = plan_with(**{name: Guards.model_fields[name].default})
    assert judged(plan, "a" * 10, "a" * 10).state == "Inconclusive"
    same = spread(4000, 40, letter)
    assert judged(plan, same, same).state == "Pass"


def test_sentences_give_numbers_units_and_risk() -> None:
    plan = plan_with(error=RateGuard(margin=0.005, pass_margin=0.02))
    assert judged(plan, spread(400, 39, "e"), spread(400, 0, "e")).sentence == (
        "error: canary fails 9.75 % of requests, control 0 %; more than the 0.5 points allowed "
        "(risk of a false alarm under 1 %)"
    )
    assert judged(plan, "a" * 50, "a" * 50).sentence == (
        "error: canary fails 0 % of requests, control 0 %; a rise of 2 points is not ruled out yet"
    )
    assert judged(plan, "a" * 1000, "a" * 1000).sentence == (
        "no worse than the control by error after 1,000 canary and 1,000 control requests"
    )
    latency = plan_with(p50=LatencyGuard(margin=0.25, pass_margin=1.0))
    assert judged(latency, "a" * 100, "a" * 100, canary_ms=240).sentence == (
        "p50: canary takes 240 ms, control 20 ms; more than the 25 % (and 10 ms) longer that is allowed "
        "(risk of a false alarm under 1 %)"
    )


def test_the_whole_risk_is_shared_by_the_guards_in_use() -> None:
    everything = Analysis(RolloutPlan(), RANGE).verdict()
    assert [guard.name for guard in everything.guards] == list(RISK_SHARES)
    assert sum(1 / guard.fails_at for guard in everything.guards) == pytest.approx(0.01)
    two = Analysis(plan_with(error=RateGuard(margin=0.1), p95=LatencyGuard(margin=0.1)), RANGE).verdict()
    assert sum(1 / guard.fails_at for guard in two.guards) == pytest.approx(0.01)


def test_a_control_that_fails_as_often_excuses_the_canary() -> None:
    outage = spread(1000, 300, "e")
    assert guard_of(judged(RolloutPlan(), outage, outage), "error").state != "Fail"
    assert guard_of(judged(RolloutPlan(), "e" * 500, "e" * 500), "error").state != "Fail"


def test_a_canary_that_fails_every_request_fails_within_a_dozen() -> None:
    result = guard_of(judged(RolloutPlan(), "e" * 30, "a" * 30), "error")
    assert result.state == "Fail"
    assert result.failed_after is not None
    assert result.failed_after <= 12


def test_a_break_after_thousands_of_good_requests_is_found() -> None:
    late = judged(RolloutPlan(), "a" * 20_000 + spread(400, 80, "e"), "a" * 20_400)
    assert guard_of(late, "error").state == "Fail"


def test_what_failed_stays_failed() -> None:
    analysis = Analysis(plan_with(error=RateGuard(margin=0.005)), RANGE)
    fill(analysis, "e" * 20, "a" * 20)
    failed = analysis.verdict()
    assert failed.state == "Fail"
    fill(analysis, "a" * 5000, "e" * 5000)
    after = analysis.verdict()
    assert after.state == "Fail"
    assert after.guards[0].failed_after == failed.guards[0].failed_after
    assert after.guards[0].evidence >= after.guards[0].fails_at


def test_a_pass_is_lost_when_newer_requests_speak_against_it() -> None:
    analysis = Analysis(plan_with(error=RateGuard(margin=0.3, pass_margin=0.5)), RANGE)
    fill(analysis, "a" * 20, "a" * 20)
    assert analysis.verdict().state == "Pass"
    fill(analysis, "eea" * 4, "a" * 12)
    assert analysis.verdict().state == "Inconclusive"


def test_the_longer_arm_waits() -> None:
    plan = plan_with(error=RateGuard(margin=0.005, pass_margin=0.02))
    analysis = Analysis(plan, RANGE)
    assert analysis.verdict().sentence == "no canary answers yet"
    analysis.add("canary", [20.0] * 500, "e" * 500)
    waiting = analysis.verdict()
    assert (waiting.state, waiting.sentence) == ("Inconclusive", "no control answers yet")
    assert waiting.guards[0].evidence == pytest.approx(1)
    analysis.add("control", [20.0] * 5, "a" * 5)
    assert analysis.verdict().state == "Inconclusive"
    analysis.add("control", [20.0] * 20, "a" * 20)
    assert analysis.verdict().state == "Fail"
    assert (analysis.verdict().canary_requests, analysis.verdict().control_requests) == (500, 25)


def test_control_alone_is_no_evidence() -> None:
    verdict = judged(RolloutPlan(), "", "a" * 1000)
    assert (verdict.state, verdict.sentence) == ("Inconclusive", "no canary answers yet")


@pytest.mark.parametrize("name", ["p50", "p95", "p99"])
def test_a_slower_quantile_fails_and_slack_forgives(name: str) -> None:
    rng = np.random.default_rng(7)
    canary, control = 3 * rng.lognormal(3, 0.5, 3000), rng.lognormal(3, 0.5, 3000)
    for slack_ms, state in ((0.0, "Fail"), (1000.0, "Pass")):
        analysis = Analysis(plan_with(**{name: LatencyGuard(margin=0.25, slack_ms=slack_ms)}), RANGE)
        analysis.add("canary", canary.tolist(), "a" * 3000)
        analysis.add("control", control.tolist(), "a" * 3000)
        result = analysis.verdict().guards[0]
        assert result.state == state
        exact = float(np.quantile(canary, float(name[1:]) / 100, method="inverted_cdf"))
        assert result.canary == pytest.approx(exact, rel=0.004)
        assert result.canary_low is not None
        assert result.canary_low < exact
        assert result.canary_high is None or exact < result.canary_high


def test_latencies_that_never_vary_pass() -> None:
    verdict = judged(plan_with(p50=LatencyGuard(margin=0.25, pass_margin=1.0)), "a" * 200, "a" * 200)
    assert verdict.state == "Pass"
    assert "taking 100 % longer is ruled out" in verdict.guards[0].sentence


def test_an_equal_canary_passes_p95() -> None:
    rng = np.random.default_rng(8)
    analysis = Analysis(plan_with(p95=LatencyGuard(margin=0.25, pass_margin=1.0)), RANGE)
    for arm in ("canary", "control"):
        analysis.add(arm, rng.lognormal(3, 0.5, 2000).tolist(), "a" * 2000)
    assert analysis.verdict().state == "Pass"


def test_only_answers_and_timeouts_have_a_latency() -> None:
    plan = plan_with(p50=LatencyGuard(margin=0.25, slack_ms=0.0))
    for letter in "eoc":
        verdict = judged(plan, letter * 200, "a" * 200, canary_ms=5000)
        assert (verdict.state, verdict.guards[0].canary) == ("Inconclusive", None)
        assert verdict.guards[0].sentence == "p50: no answers of both arms yet"
    assert judged(plan, "t" * 200, "a" * 200, canary_ms=5000).state == "Fail"


def test_a_guard_without_a_pass_margin_can_only_fail() -> None:
    plan = plan_with(error=RateGuard(margin=0.005))
    assert Analysis(plan, RANGE).verdict().state == "Inconclusive"
    assert judged(plan, "a", "a").state == "Pass"
    assert "not shown to be worse" in judged(plan, "a", "a").guards[0].sentence


def with_rewards(plan: RolloutPlan, canary: list[float], control: list[float], bounds: Any = RANGE) -> Verdict:
    analysis = Analysis(plan, bounds)
    fill(analysis, "a" * len(canary), "a" * len(control))
    analysis.add_rewards("canary", canary)
    analysis.add_rewards("control", control)
    return analysis.verdict()


REWARD = plan_with(reward=RewardGuard(margin=0.02, pass_margin=0.3))


def test_a_lower_reward_fails_an_equal_one_passes() -> None:
    good, poor = [1.0, 0.0, 1.0, 1.0] * 500, [0.0, 0.0, 1.0, 0.0] * 500
    failed = with_rewards(REWARD, poor, good)
    assert failed.sentence == (
        "reward: canary earns 0.25 per request, control 0.75; less by more than the 2 % allowed "
        "(risk of a false alarm under 1 %)"
    )
    assert failed.state == "Fail"
    passed = with_rewards(REWARD, good, good)
    assert (passed.state, passed.guards[0].superior) == ("Pass", False)
    assert "a loss of 30 % is ruled out" in passed.guards[0].sentence
    assert with_rewards(REWARD, poor[:8], poor[:8]).state == "Inconclusive"


def test_a_control_that_earns_less_than_nothing_leaves_room() -> None:
    losses = [-0.5, 0.0, -0.5, 0.0] * 500
    assert with_rewards(REWARD, losses, losses).state == "Pass"
    assert with_rewards(REWARD, [-0.5] * 2000, losses).state == "Fail"


def test_no_feedback_at_all_is_inconclusive_and_says_what_to_do() -> None:
    verdict = with_rewards(REWARD, [0.0] * 5000, [0.0] * 5000)
    assert verdict.state == "Inconclusive"
    assert verdict.sentence == "reward: no answer got any feedback; send feedback, or set rollout.guards.reward to null"
    waiting = judged(REWARD, "a" * 100, "a" * 100)
    assert waiting.state == "Inconclusive"
    assert waiting.sentence == "reward: no answer of both arms has waited long enough for its feedback yet"


def test_feedback_without_weights_is_an_error_that_says_what_to_do() -> None:
    verdict = with_rewards(RolloutPlan(), [0.0] * 5000, [0.0] * 5000, bounds=(0.0, 0.0))
    assert verdict.state == "Error"
    assert "set rollout.guards.reward to null" in verdict.sentence
    failed = judged_with_range((0.0, 0.0))
    assert failed.state == "Fail", "a failing guard is worse than one that cannot be judged"


def judged_with_range(bounds: tuple[float, float]) -> Verdict:
    analysis = Analysis(RolloutPlan(), bounds)
    fill(analysis, "e" * 50, "a" * 50)
    return analysis.verdict()


def test_superiority_passes_only_what_earns_more() -> None:
    plan = plan_with(reward=RewardGuard(margin=0.02, pass_margin=0.3, superiority=True))
    good, poor = [1.0, 0.0, 1.0, 1.0] * 500, [0.0, 0.0, 1.0, 0.0] * 500
    assert with_rewards(plan, poor, poor).state == "Inconclusive"
    assert "that the canary earns more is not shown yet" in with_rewards(plan, poor, poor).sentence
    better = with_rewards(plan, good, poor)
    assert (better.state, better.guards[0].superior) == ("Pass", True)
    assert with_rewards(plan, poor, good).state == "Fail"


def test_a_superiority_margin_asks_for_that_much_more() -> None:
    some, more = [1.0, 0.0, 0.0, 0.0] * 2000, [1.0, 1.0, 0.0, 0.0] * 2000
    states = {
        margin: with_rewards(
            plan_with(reward=RewardGuard(margin=0.05, pass_margin=None, superiority=True, superiority_margin=margin)),
            more,
            some,
        )
        for margin in (0.0, 0.05, 0.99)
    }
    assert [verdict.state for verdict in states.values()] == ["Pass", "Pass", "Inconclusive"]
    assert "earns more by over 99" in states[0.99].sentence
    with pytest.raises(ValueError, match="needs `superiority: true`"):
        RewardGuard(margin=0.05, superiority_margin=0.05)


def test_several_events_on_one_answer_count_as_the_end_of_the_range() -> None:
    verdict = with_rewards(REWARD, [7.0, -9.0], [7.0, -9.0])
    assert verdict.guards[0].canary == pytest.approx((1.0 - 0.5) / 2)


def test_the_worst_guard_decides_and_speaks() -> None:
    verdict = judged(RolloutPlan(), "e" * 60 + "a" * 600, "a" * 660, canary_ms=100)
    assert verdict.state == "Fail"
    assert "error: canary fails 9.09 %" in verdict.sentence
    assert "p50: canary takes" in verdict.sentence
    open_ones = judged(RolloutPlan(), "a" * 5, "a" * 5)
    assert open_ones.sentence.startswith("more evidence is needed for error, p50")
    assert judged(RolloutPlan(guards=Guards(**OFF)), "e", "a").state == "Pass"


@pytest.mark.parametrize(
    ("latencies_ms", "outcomes", "says"),
    [
        ([1.0], "aa", "1 latencies_ms for 2 outcomes"),
        ([float("nan")], "a", "finite numbers of milliseconds"),
        ([float("inf")], "a", "finite numbers of milliseconds"),
        ([-1.0], "a", "0 or more"),
        ([1.0], "x", "letters of registry.traffic"),
        ([1.0, 1.0], "é", "letters of registry.traffic"),
    ],
)
def test_bad_evidence_is_refused_whole(latencies_ms: list[float], outcomes: str, says: str) -> None:
    analysis = Analysis(RolloutPlan(), RANGE)
    with pytest.raises(ValueError, match=says):
        analysis.add("canary", latencies_ms, outcomes)
    with pytest.raises(ValueError, match="finite"):
        analysis.add_rewards("canary", [0.5, float("nan")])
    with pytest.raises(ValueError, match="arm must be one of"):
        analysis.add("stable", [1.0], "a")  # type: ignore[arg-type]
    assert analysis.verdict().canary_requests == 0
    assert guard_of(analysis.verdict(), "reward").canary is None


@pytest.mark.parametrize("bounds", [(0.5, 1.0), (-1.0, -0.5), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_reward_range_without_0_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="reward_range"):
        Analysis(RolloutPlan(), bounds)


def test_a_canary_that_is_ahead_and_breaks_is_found_without_waiting_for_the_control() -> None:
    def verdict(newest: int) -> GuardState:
        analysis = Analysis(RolloutPlan(), (-0.5, 1.0))
        analysis.add("canary", [5.0] * 60, "a" * 60)
        analysis.add("control", [5.0] * 20, "a" * 20)
        for _ in range(10):
            analysis.keep_waiting(newest)
            analysis.add("canary", [5.0] * 3, "eee")
            analysis.add("control", [5.0] * 3, "aaa")
        assert analysis.verdict().canary_requests == 90
        return analysis.verdict().state

    assert verdict(newest=1000) == "Inconclusive"
    assert verdict(newest=8) == "Fail"


def measured_plan() -> RolloutPlan:
    off = dict.fromkeys(("error", "p50", "p95", "p99", "abstained", "empty", "reward"))
    shares = {"failed_grounded": {"margin": 0.02, "pass_margin": 0.2}}
    medians = {"ms_per_token": {"margin": 0.25, "pass_margin": 1.0, "slack_ms": 1.0}}
    return RolloutPlan.model_validate({"guards": {**off, "shares": shares, "medians": medians}})


@pytest.mark.parametrize(
    ("failing", "ms", "state", "failed"),
    [(0.01, 20.0, "Pass", set()), (0.6, 20.0, "Fail", {"failed_grounded"}), (0.01, 60.0, "Fail", {"ms_per_token"})],
)
def test_measures_of_answers_are_guards(failing: float, ms: float, state: str, failed: set[str]) -> None:
    rng = np.random.default_rng(5)
    analysis = Analysis(measured_plan(), (0.0, 1.0))
    for arm, share, speed in (("control", 0.01, 20.0), ("canary", failing, ms)):
        analysis.add(arm, [5.0] * 600, "a" * 600)  # type: ignore[arg-type]
        asked = rng.random(600) < 0.5  # the others generated nothing
        bad = rng.random(600) < share
        analysis.add_measures(
            arm,  # type: ignore[arg-type]
            {
                "failed_grounded": [float(b) if a else None for a, b in zip(asked, bad, strict=True)],
                "ms_per_token": [
                    speed * (0.9 + 0.2 * r) if a else None for a, r in zip(asked, rng.random(600), strict=True)
                ],
                "nobody_asked": [7.0] * 600,
            },
        )
    verdict = analysis.verdict()
    assert verdict.state == state, verdict.sentence
    assert {guard.name for guard in verdict.guards if guard.state == "Fail"} == failed
    assert {guard.name for guard in verdict.guards} == {"failed_grounded", "ms_per_token"}


def test_measures_that_nobody_sent_hold_a_rollout() -> None:
    analysis = Analysis(measured_plan(), (0.0, 1.0))
    for arm in ("canary", "control"):
        analysis.add(arm, [5.0] * 100, "a" * 100)  # type: ignore[arg-type]
    assert analysis.verdict().state == "Inconclusive"
    with pytest.raises(ValueError, match="failed_grounded"):
        analysis.add_measures("canary", {"failed_grounded": [2.0]})
