"""Laws of the judgement: chunks make no difference, more failures never help, and its stated risks hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.analysis import Analysis, Verdict
from registry.analysis.betting import EVEN, RARE, Bets
from registry.plan import Guards, LatencyGuard, RateGuard, RewardGuard, RolloutPlan
from registry.traffic import TrialArm

RANGE = (-0.5, 1.0)
SHARP = LatencyGuard(margin=0.1, pass_margin=1.0, slack_ms=0.0)
PLAN = RolloutPlan(guards=Guards(p50=SHARP, p95=SHARP))
ARMS: tuple[TrialArm, TrialArm] = ("canary", "control")

requests = st.lists(st.tuples(st.sampled_from("aaaaanzetoc"), st.floats(0, 1e4), st.sampled_from([0.0, 1.0, -0.5])))


def close(one: Verdict, other: Verdict) -> bool:
    """Equal but for the last digits of sums taken in another order."""
    pairs = zip(one.guards, other.guards, strict=True)
    return (
        (one.state, one.sentence, one.canary_requests) == (other.state, other.sentence, other.canary_requests)
        and all(mine.evidence == pytest.approx(theirs.evidence) for mine, theirs in pairs)
        and [g.failed_after for g in one.guards] == [g.failed_after for g in other.guards]
    )


@settings(max_examples=60)
@given(requests, requests, st.lists(st.integers(1, 40)), st.randoms(use_true_random=False))
def test_how_the_streams_are_cut_and_interleaved_makes_no_difference(canary, control, sizes, random):
    canary, control = canary * 12, control * 12
    whole, cut = Analysis(PLAN, RANGE), Analysis(PLAN, RANGE)
    pieces = []
    for arm, stream in zip(ARMS, (canary, control), strict=True):
        add(whole, arm, stream)
        edges = [0, *itertools.accumulate(sizes), len(stream)]
        pieces.append([(arm, stream[a:b]) for a, b in itertools.pairwise(edges)])
    while any(pieces):
        queue = random.choice([p for p in pieces if p])
        add(cut, *queue.pop(0))
    assert close(whole.verdict(), cut.verdict())


def add(analysis, arm, stream):
    analysis.add(arm, [ms for _, ms, _ in stream], "".join(letter for letter, _, _ in stream))
    analysis.add_rewards(arm, [reward for _, _, reward in stream])


@given(st.text("ae", min_size=1, max_size=300), st.text("ae", min_size=300, max_size=300), st.integers(0, 10**6))
def test_more_failures_of_the_canary_never_help_it(canary, control, which):
    at = which % len(canary)
    worse = canary[:at] + "e" + canary[at + 1 :]
    before, after = (error_evidence(stream, control) for stream in (canary, worse))
    assert after[0] >= before[0] * (1 - 1e-9)
    assert (after[1] or math.inf) <= (before[1] or math.inf)
    relieved = error_evidence(canary, control[:at] + "e" + control[at + 1 :])
    assert relieved[0] <= before[0] * (1 + 1e-9)


def error_evidence(canary, control):
    analysis = Analysis(RolloutPlan(), RANGE)
    for arm, outcomes in zip(ARMS, (canary, control), strict=True):
        analysis.add(arm, [1.0] * len(outcomes), outcomes)
    error = analysis.verdict().guards[0]
    assert error.name == "error"
    return error.evidence, error.failed_after


SHARES = (0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0)


@pytest.mark.parametrize("weights", [RARE, EVEN])
@pytest.mark.parametrize("margin", [0.0, 0.005, 0.1, 0.5])
def test_expected_wealth_is_at_most_1_wherever_the_claim_holds(weights, margin):
    for control in SHARES:
        for canary in {min(1.0, control + margin), *(s for s in SHARES if s <= control + margin)}:
            expected = 0.0
            for x, y in itertools.product((0, 1), repeat=2):
                probability = (canary if x else 1 - canary) * (control if y else 1 - control)
                bets = Bets(-1 - margin, 100.0, weights)
                bets.add(np.array([float(x - y) - margin]))
                expected += probability * bets.wealth
            assert expected <= 1 + 1e-12


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3), st.floats(0, 0.9))
def test_expected_wealth_is_at_most_1_under_drift_and_at_any_stopping_time(shares, margin):
    """Three pairs, each with shares of its own that obey the margin; stopped as soon as the wealth is above 1."""
    shares = [(min(a, b + margin), b) for a, b in shares]
    expected = 0.0
    for outcome in itertools.product((0, 1), repeat=6):
        probability, bets = 1.0, Bets(-1 - margin, 100.0)
        for (canary, control), x, y in zip(shares, outcome[::2], outcome[1::2], strict=True):
            probability *= (canary if x else 1 - canary) * (control if y else 1 - control)
            if bets.wealth <= 1 + 1e-12:
                bets.add(np.array([float(x - y) - margin]))
        expected += probability * bets.wealth
    assert expected <= 1 + 1e-9


@given(st.floats(-5, 0), st.floats(0, 5), st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_bets_on_rewards_stay_solvent_at_the_ends_of_the_range(lowest, highest, margin, a, b):
    if highest - lowest < 1e-3:
        return
    plan = RolloutPlan(guards=Guards(reward=RewardGuard(margin=margin, pass_margin=0.95)))
    analysis = Analysis(plan, (lowest, highest))
    values = [lowest, highest, 0.0, lowest + a * (highest - lowest), lowest + b * (highest - lowest)]
    for canary, control in itertools.product(values, repeat=2):
        analysis.add_rewards("canary", [canary] * 200)
        analysis.add_rewards("control", [control] * 200)
    evidence = analysis.verdict().guards[-1].evidence
    assert math.isfinite(evidence)
    assert evidence > 0


ROLLOUTS, LENGTH, RISK = 2000, 250, 0.2
TOO_MANY = RISK * ROLLOUTS + 3 * math.sqrt(RISK * (1 - RISK) * ROLLOUTS)
ALL_OFF = dict.fromkeys(Guards.model_fields)


def failures_among(rollouts, make, guards):
    """Of seeded rollouts that `make(rng)` gives, how many were failed at any of their requests."""
    plan = RolloutPlan(guards=Guards(**{**ALL_OFF, **guards}), false_rollback_ratio=RISK)
    failed = 0
    for seed in range(rollouts):
        analysis = Analysis(plan, RANGE)
        for arm, (latencies, failures, rewards) in zip(ARMS, make(np.random.default_rng(seed)), strict=True):
            outcomes = np.where(failures, ord("e"), ord("a")).astype(np.uint8).tobytes().decode()
            analysis.add(arm, latencies, outcomes)
            analysis.add_rewards(arm, rewards)
        failed += any(g.failed_after is not None for g in analysis.verdict().guards)
    return failed


def arms_at_the_margins(rng, error_rise=0.05, slower=1.1, reward_loss=0.1):
    """Exactly as much worse as is allowed, while both drift; a tenth of the control fails."""
    drift = 20 * (1 + 0.5 * np.sin(np.arange(LENGTH) / 40 + 6 * rng.random()))
    canary = (
        slower * drift * rng.lognormal(0, 0.4, LENGTH),
        rng.random(LENGTH) < 0.1 + error_rise,
        (rng.random(LENGTH) < 0.5 * (1 - reward_loss)).astype(float),
    )
    control = (
        drift * rng.lognormal(0, 0.4, LENGTH),
        rng.random(LENGTH) < 0.1,
        (rng.random(LENGTH) < 0.5).astype(float),
    )
    return canary, control


MARGINS = {
    "error": RateGuard(margin=0.05),
    "p50": SHARP,
    "p95": SHARP,
    "reward": RewardGuard(margin=0.1),
}


def test_false_rollbacks_stay_within_the_stated_risk_under_continuous_peeking():
    failed = failures_among(ROLLOUTS, arms_at_the_margins, MARGINS)
    assert failed <= TOO_MANY
    assert failed > 0.02 * ROLLOUTS, "so far from the risk that the test could not fail"


@pytest.mark.parametrize(
    "too_much", [{"error_rise": 0.15}, {"slower": 1.4}, {"reward_loss": 0.4}], ids=["error", "latency", "reward"]
)
def test_that_simulation_would_notice_a_canary_beyond_the_margins(too_much):
    failed = failures_among(200, lambda rng: arms_at_the_margins(rng, **too_much), MARGINS)
    assert failed / 200 > TOO_MANY / ROLLOUTS


def test_false_passes_stay_within_the_stated_risk():
    """Worse by exactly the pass margin: at most a tenth are ever passed."""
    guard = {"error": RateGuard(margin=0.01, pass_margin=0.05)}
    plan = RolloutPlan(guards=Guards(**{**ALL_OFF, **guard}), false_rollback_ratio=0.001)
    passed = 0
    rollouts, looks, between = 300, 25, 16
    for seed in range(rollouts):
        rng, analysis, ever = np.random.default_rng(seed), Analysis(plan, RANGE), False
        for _ in range(looks):
            for arm, share in zip(ARMS, (0.06, 0.01), strict=True):
                failures = rng.random(between) < share
                analysis.add(arm, [1.0] * between, "".join("e" if f else "a" for f in failures))
            ever = ever or analysis.verdict().state == "Pass"
        passed += ever
    assert passed <= 0.1 * rollouts + 3 * math.sqrt(0.1 * 0.9 * rollouts)
    assert passed > 0
