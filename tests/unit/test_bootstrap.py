"""The intervals of the paired bootstrap: how often they hold the truth, and what they say where cases are few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from training import metrics
from training.bootstrap import figure_interval, generator, mean_interval

LEVEL = 0.95


@pytest.mark.parametrize(
    ("cases", "shares"),
    [(30, (0.2, 0.6, 0.2)), (100, (0.05, 0.8, 0.15)), (400, (0.02, 0.95, 0.03))],
    ids=["few", "some", "rarely different"],
)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(cases: int, shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(cases)
    truth, held, worlds = shares[2] - shares[0], 0, 400
    for _ in range(worlds):
        interval = mean_interval(rng.choice([-1.0, 0.0, 1.0], size=cases, p=shares), LEVEL, rng, resamples=800)
        assert interval is not None
        held += interval.low <= truth <= interval.high
    assert 0.92 <= held / worlds <= 0.99


def test_it_agrees_with_scipy_where_cases_are_many() -> None:
    differences = np.random.default_rng(4).normal(0.02, 0.3, size=2000)
    ours = mean_interval(differences, LEVEL, np.random.default_rng(5))
    theirs = scipy_bootstrap((differences,), np.mean, method="percentile", rng=6).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_no_difference_at_all_is_an_interval_of_zero() -> None:
    assert mean_interval(np.zeros(5), LEVEL, np.random.default_rng(0)) == (0.0, 0.0)


def test_one_case_proves_nothing_and_none_gives_no_interval() -> None:
    interval = mean_interval(np.ones(1), LEVEL, np.random.default_rng(0))
    assert interval == (-1.0, 1.0)
    assert mean_interval(np.zeros(0), LEVEL, np.random.default_rng(0)) is None
    assert figure_interval(lambda counts: counts[:, 0], 0, LEVEL, np.random.default_rng(0)) is None


def test_few_cases_all_won_are_no_proof_and_more_are() -> None:
    lows = {n: mean_interval(np.ones(n), LEVEL, np.random.default_rng(0)) for n in (3, 8)}
    assert lows[3] is not None
    assert lows[8] is not None
    assert lows[3].low < 0 < lows[8].low


def test_the_same_seed_and_names_give_the_same_interval_in_any_order() -> None:
    values = np.random.default_rng(1).normal(size=50)
    first = mean_interval(values, LEVEL, generator(7, "korean", "typo"))
    generator(7, "other").random(100)
    assert mean_interval(values, LEVEL, generator(7, "korean", "typo")) == first
    assert mean_interval(values, LEVEL, generator(7, "korean", "exact")) != first


def test_chunks_bound_memory_and_change_nothing_in_kind() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, size=5000)
    interval = mean_interval(values, LEVEL, np.random.default_rng(2), resamples=1000)
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(5000), rel=0.1)


def test_the_interval_of_an_auc_is_about_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(3)
    labels = np.r_[np.ones(200), np.zeros(200)]
    scores = rng.normal(labels, 1.0)
    interval = figure_interval(lambda counts: metrics.auc(labels, scores, counts), 400, LEVEL, rng, resamples=1000)
    a = float(metrics.auc(labels, scores))
    # Hanley, McNeil 1982, with their approximation of the two probabilities
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + 199 * (q1 - a * a) + 199 * (q2 - a * a)) / 200**2)
    assert interval is not None
    assert interval.low < a < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_too_seldom_a_figure_is_no_interval() -> None:
    labels, scores = np.array([1.0, 0.0]), np.array([0.4, 0.6])
    assert figure_interval(lambda c: metrics.auc(labels, scores, c), 2, LEVEL, np.random.default_rng(0)) is not None
    alone = np.ones(2)
    assert figure_interval(lambda c: metrics.auc(alone, scores, c), 2, LEVEL, np.random.default_rng(0)) is None
