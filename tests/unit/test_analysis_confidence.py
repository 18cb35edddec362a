"""Limits cover the truth at all times together, over seeded streams; and bets and thresholds at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from registry.analysis.betting import KEPT_BACK, SEGMENT, Bets
from registry.analysis.confidence import MeanLimits, Sketch, quantile_ranks, share_limits
from registry.analysis.pairing import Pairing, RunningQuantiles

MISS = 0.1
STREAMS = 200
LENGTH = 600
LOOKS = (*range(1, 20), *range(20, LENGTH + 1, 20))
TOO_MANY = MISS * STREAMS + 3 * math.sqrt(MISS * (1 - MISS) * STREAMS)
"""Three standard deviations above the misses that are allowed."""


@pytest.mark.parametrize("share", [0.003, 0.1, 0.5, 0.97])
def test_share_limits_cover_at_all_times(share: float) -> None:
    rng = np.random.default_rng(11)
    seen = np.cumsum(rng.random((STREAMS, LENGTH)) < share, axis=1)
    missed = 0
    for stream in seen:
        limits = (share_limits(int(stream[n - 1]), n, MISS) for n in LOOKS)
        missed += any(not low <= share <= high for low, high in limits)
    assert missed <= TOO_MANY


def test_share_limits_close_in_and_keep_their_ends() -> None:
    assert share_limits(0, 0, MISS) == (0.0, 1.0)
    low, high = share_limits(0, 100, MISS)
    assert low == 0.0
    assert 0.03 < high < 0.09
    low, high = share_limits(100, 100, MISS)
    assert high == 1.0
    assert 0.91 < low < 0.97
    low, high = share_limits(50_000, 100_000, MISS)
    assert 0.49 < low < 0.5 < high < 0.51


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_quantile_limits_cover_at_all_times(quantile: float) -> None:
    rng = np.random.default_rng(12)
    values = rng.random((STREAMS, LENGTH))  # of a uniform distribution, whose quantile is the share itself
    missed = 0
    for stream in values:
        for n in LOOKS:
            low, high = quantile_ranks(n, quantile, MISS)
            ordered = np.sort(stream[:n])
            if (low >= 1 and ordered[low - 1] > quantile) or (high <= n and ordered[high - 1] < quantile):
                missed += 1
                break
    assert missed <= TOO_MANY
    low, high = quantile_ranks(100_000, quantile, MISS)
    assert low / 100_000 < quantile < high / 100_000
    assert (high - low) / 100_000 < 0.02


@pytest.mark.parametrize(("share", "low", "high"), [(0.6, -0.5, 1.0), (0.02, 0.0, 1.0), (0.5, -3.0, 5.0)])
def test_mean_limits_cover_at_all_times_and_close_in(share: float, low: float, high: float) -> None:
    rng = np.random.default_rng(13)
    mean, missed = low + share * (high - low), 0
    for _ in range(STREAMS):
        values = np.where(rng.random(LENGTH) < share, high, low)
        limits, at, outside = MeanLimits(low, high, MISS), 0, False
        for n in LOOKS:
            limits.add(values[at:n])
            at = n
            below, above = limits.limits()
            outside = outside or not below <= mean <= above
        missed += outside
    assert missed <= TOO_MANY
    assert above - below < 0.25 * (high - low)


def test_limits_of_a_mean_before_any_value_are_the_range() -> None:
    limits = MeanLimits(-1.0, 2.0, MISS)
    limits.add(np.empty(0))
    assert (limits.mean, limits.limits()) == (None, (-1.0, 2.0))


def test_a_sketch_reads_quantiles_of_any_size() -> None:
    sketch = Sketch()
    assert sketch.quantile(0.5, MISS) == (None, None, None)
    sketch.add(np.array([0.0, 1e9]))
    estimate, low, high = sketch.quantile(0.5, MISS)
    assert estimate == pytest.approx(1e-3, rel=0.01)
    assert (low, high) == (None, None)
    sketch.add(np.full(10_000, 12.5))
    assert sketch.quantile(0.99, MISS) == (pytest.approx(12.5, rel=0.005),) * 3


def test_thresholds_come_from_the_past_only() -> None:
    quantiles = RunningQuantiles((0.5, 0.95, 0.99))
    values = np.arange(1.0, 201.0)
    known = quantiles.before(values)
    assert np.isnan(known[:16]).all()
    assert known[16].tolist()[0] == 8.0  # the median of 1..16
    assert np.isnan(known[16][1:]).all()
    assert known[32][1] == 31.0
    assert known[112][2] == 111.0
    assert (known[16:, 0] < values[16:]).all()


def test_thresholds_forget() -> None:
    quantiles = RunningQuantiles((0.5,))
    quantiles.before(np.full(5000, 10.0))
    quantiles.before(np.full(1024, 90.0))
    assert quantiles.before(np.array([1.0]))[0, 0] == 90.0


def test_pairs_are_made_in_order() -> None:
    pairing = Pairing()
    canary, control = pairing.add("canary", np.array([1, 2, 3]))
    assert len(canary) == len(control) == 0
    canary, control = pairing.add("control", np.array([7, 8]))
    assert (canary.tolist(), control.tolist()) == ([1, 2], [7, 8])
    canary, control = pairing.add("control", np.array([9, 10]))
    assert (canary.tolist(), control.tolist()) == ([3], [9])
    canary, control = pairing.add("canary", np.array([4]))
    assert (canary.tolist(), control.tolist()) == ([4], [10])


def test_only_the_newest_of_the_arm_that_is_ahead_are_kept() -> None:
    pairing = Pairing()
    pairing.add("canary", np.array([1, 2, 3, 4]))
    pairing.keep(2)
    canary, control = pairing.add("control", np.array([7, 8, 9]))
    assert (canary.tolist(), control.tolist()) == ([3, 4], [7, 8])
    pairing.keep(5)
    canary, control = pairing.add("canary", np.array([5]))
    assert (canary.tolist(), control.tolist()) == ([5], [9])


def test_bets_start_with_one_and_never_lose_what_is_kept_back() -> None:
    bets = Bets(-1.0, 100.0)
    assert bets.wealth == pytest.approx(1.0)
    bets.add(np.full(SEGMENT, -1.0))
    assert KEPT_BACK <= bets.wealth < 2 * KEPT_BACK
    bets.add(np.full(10 * SEGMENT, -1.0))
    assert 0 < bets.wealth < KEPT_BACK
    bets.add(np.full(20_000, 1.0))
    assert bets.refuted
    assert math.isfinite(bets.wealth)


def test_the_crossing_is_found_wherever_it_lies_in_a_chunk() -> None:
    differences = np.where(np.random.default_rng(14).random(2000) < 0.65, 0.9, -1.0)
    at_once, one_by_one = Bets(-1.0, 20.0), Bets(-1.0, 20.0)
    at_once.add(differences)
    for n, difference in enumerate(differences, 1):
        one_by_one.add(np.array([difference]))
        if one_by_one.wealth >= 20.0:
            assert at_once.crossed_after == one_by_one.crossed_after == n
            return
    pytest.fail("these differences refute nothing")


@pytest.mark.parametrize(("lowest", "fails_at"), [(0.0, 100.0), (0.5, 100.0), (-1.0, 1.0), (float("nan"), 2.0)])
def test_bets_without_a_loss_or_a_goal_are_refused(lowest: float, fails_at: float) -> None:
    with pytest.raises(ValueError, match="lowest must be below 0"):
        Bets(lowest, fails_at)
