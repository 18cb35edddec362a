"""Every figure of `training.metrics` against an implementation by others: trec_eval for rankings, scikit-learn for
all else; generated rankings with graded gains, short and empty ones included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from training import metrics

KS = (1, 5, 10, 20, 100)
ITEMS = [f"i{n}" for n in range(30)]
rankings = st.lists(st.sampled_from(ITEMS), unique=True, max_size=30)
judgements = st.dictionaries(st.sampled_from(ITEMS), st.integers(1, 4), min_size=1, max_size=12)
cases = st.lists(st.tuples(rankings, judgements), min_size=1, max_size=5)


def trec_eval(found: list[tuple[list[str], dict[str, int]]]) -> list[dict[str, float]]:
    depths = ",".join(str(k) for k in KS)
    asked = {f"{name}.{depths}" for name in ("recall", "success", "P", "map_cut", "ndcg_cut")} | {"recip_rank"}
    # An item without a gain has to be there, or trec_eval leaves a query without answers out.
    qrels = {str(n): {**grades, "none": 0} for n, (_, grades) in enumerate(found)}
    runs = {str(n): {item: -float(r) for r, item in enumerate([*ids, "none"])} for n, (ids, _) in enumerate(found)}
    told = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(runs)
    return [told[str(n)] for n in range(len(found))]


@settings(max_examples=60, deadline=None)
@given(cases)
def test_rankings_agree_with_trec_eval(found: list[tuple[list[str], dict[str, int]]]) -> None:
    theirs = trec_eval(found)
    depth = max(KS)
    gains = metrics.gains_of([ids for ids, _ in found], [grades for _, grades in found], depth)
    ideal = metrics.ideal_of([grades for _, grades in found], depth)
    right = np.array([len(grades) for _, grades in found])
    for k in KS:
        ours = {
            f"recall_{k}": metrics.recall_at_k(gains, right, k),
            f"success_{k}": metrics.success_at_k(gains, k),
            f"P_{k}": metrics.precision_at_k(gains, k),
            f"map_cut_{k}": metrics.average_precision(gains, right, k),
            f"ndcg_cut_{k}": metrics.ndcg_at_k(gains, ideal, k),
        }
        for name, values in ours.items():
            assert values == pytest.approx([row[name] for row in theirs], abs=1e-6), name
    assert metrics.reciprocal_rank(gains, depth) == pytest.approx([row["recip_rank"] for row in theirs], abs=1e-6)


def test_ndcg_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    grades = rng.integers(0, 4, size=(20, 15)).astype(float)
    scores = rng.permuted(np.tile(np.arange(15.0), (20, 1)), axis=1)
    gains = np.take_along_axis(grades, np.argsort(-scores, axis=1), axis=1)
    ideal = -np.sort(-grades, axis=1)
    for k in (1, 3, 10, 15, 40):
        assert metrics.ndcg_at_k(gains, ideal, k).mean() == pytest.approx(ndcg_score(grades, scores, k=k))


def test_reciprocal_rank_is_cut_at_k() -> None:
    gains = metrics.gains_of([["a", "b", "c"]], [{"c"}], 3)
    assert [metrics.reciprocal_rank(gains, k)[0] for k in (2, 3)] == [0.0, pytest.approx(1 / 3)]


def test_an_item_named_twice_counts_once() -> None:
    gains = metrics.gains_of([["a", "a", "b"]], [{"a": 2.0, "b": 1.0}], 3)
    assert gains.tolist() == [[2.0, 0.0, 1.0]]


def test_no_cases_and_no_answers_are_no_fault() -> None:
    nothing = metrics.gains_of([], [], 10)
    assert metrics.success_at_k(nothing, 10).shape == (0,)
    silent = metrics.gains_of([[]], [{"a"}], 10)
    one = np.array([1])
    assert metrics.recall_at_k(silent, one, 10).tolist() == [0.0]
    assert metrics.average_precision(silent, one, 10).tolist() == [0.0]
    assert metrics.recall_at_k(silent, np.array([0]), 10).tolist() == [0.0]


labelled = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda n: n / 8), st.integers(1, 5)), min_size=2, max_size=40
).filter(lambda rows: len({label for label, _, _ in rows}) == 2)


@settings(max_examples=100, deadline=None)
@given(labelled)
def test_auc_agrees_with_scikit_learn_with_ties_and_weights(rows: list[tuple[int, float, int]]) -> None:
    labels, scores, weights = map(np.array, zip(*rows, strict=True))
    theirs = roc_auc_score(labels, scores, sample_weight=weights)
    assert float(metrics.auc(labels, scores, weights)) == pytest.approx(theirs)
    both = metrics.auc(labels, scores, np.stack([weights, np.ones(len(weights))]))
    assert both == pytest.approx([theirs, roc_auc_score(labels, scores)])


def test_auc_of_one_label_or_of_nothing_is_not_a_number() -> None:
    assert math.isnan(metrics.auc([1, 1], [0.1, 0.2]))
    assert math.isnan(metrics.auc([], []))
    assert np.isnan(metrics.auc([0, 1], [0.1, 0.2], [[1, 0], [1, 1]])).tolist() == [True, False]


@settings(max_examples=50, deadline=None)
@given(labelled)
def test_log_loss_agrees_with_scikit_learn(rows: list[tuple[int, float, int]]) -> None:
    labels, probabilities, weights = map(np.array, zip(*rows, strict=True))
    ours = metrics.log_loss(labels, probabilities)
    assert ours.mean() == pytest.approx(sklearn_log_loss(labels, probabilities))
    theirs = sklearn_log_loss(labels, probabilities, sample_weight=weights)
    assert np.average(ours, weights=weights) == pytest.approx(theirs)


def test_reliability_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.random(1000)
    labels = (rng.random(1000) < probabilities**2).astype(int)
    rows = metrics.reliability(labels, probabilities, bins=10)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    assert [row.cases for row in rows] == [100] * 10
    assert [row.observed for row in rows] == pytest.approx(observed)
    assert [row.predicted for row in rows] == pytest.approx(predicted)
    error = float(metrics.calibration_error(labels, probabilities))
    assert error == pytest.approx(np.abs(observed - predicted).mean())
    assert error == pytest.approx(1 / 6, abs=0.03)  # the mean of p - p * p


def test_equal_probabilities_share_a_bin_and_weights_count() -> None:
    assert metrics.equal_mass_bins([0.5] * 7 + [0.9], bins=4).tolist() == [0] * 7 + [3]
    assert float(metrics.calibration_error([1, 0, 0, 0], [0.25] * 4)) == pytest.approx(0.0)
    assert float(metrics.calibration_error([1, 0, 0, 0], [0.25] * 4, [3, 1, 1, 1])) == pytest.approx(0.25)
    assert math.isnan(metrics.calibration_error([1], [0.5], [0]))


def test_perplexity_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.ones(50), size=12)
    tokens = rng.integers(50, size=12)
    theirs = math.exp(sklearn_log_loss(tokens, probabilities, labels=np.arange(50)))
    each = np.log(probabilities[np.arange(12), tokens])
    assert float(metrics.perplexity([each[:5].sum(), each[5:].sum()], [5, 7])) == pytest.approx(theirs)
    assert math.isnan(metrics.perplexity([], []))
