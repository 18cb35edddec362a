"""Laws of fusion, whatever the sources say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serving.ports import Hits
from serving.retrieve.fusion import Fusion, decided, scaled
from serving.schema import FusionSpec, RetrieveSpec, SourceSpec

ENGINES = ("rules", "lexical", "dense")
NAMES = ("a", "b", "c")


def hits_of(scores: dict[int, float]) -> Hits:
    best_first = sorted(scores, key=lambda row: (-scores[row], row))
    return Hits(np.array(best_first, np.int64), np.array([scores[row] for row in best_first], np.float32))


def spec_of(
    method: str = "weighted", weights: tuple[float, ...] = (1, 1, 1), engines: tuple[str, ...] = ENGINES, **fusion: Any
) -> RetrieveSpec:
    sources = {n: {"engine": e, "weight": w} for n, e, w in zip(NAMES, engines, weights, strict=True)}
    order = {"order": NAMES} if method == "cascade" else {}
    return RetrieveSpec.model_validate({"sources": sources, "fusion": {"method": method, **order, **fusion}})


unit = st.floats(0, 1, width=32)
score_lists = st.fixed_dictionaries({n: st.dictionaries(st.integers(0, 30), unit, max_size=12) for n in NAMES})
methods = st.sampled_from(["weighted", "rrf", "cascade"])
weight_triples = st.tuples(*[st.floats(0.01, 5)] * 3)


@given(score_lists, methods, weight_triples, st.permutations(NAMES))
def test_the_order_in_which_sources_are_given_does_not_matter(lists, method, weights, order):
    fusion = Fusion(spec_of(method, weights))
    hits = {n: hits_of(lists[n]) for n in NAMES}
    assert fusion.merge(hits, 40) == fusion.merge({n: hits[n] for n in order}, 40)


@given(score_lists, methods, weight_triples, st.integers(1, 40))
def test_scores_are_0_to_1_best_first_and_each_row_comes_once(lists, method, weights, top_k):
    hits = {n: hits_of(lists[n]) for n in NAMES}
    merged = Fusion(spec_of(method, weights)).merge(hits, top_k)
    assert all(0 <= m.score <= 1 for m in merged)
    # Equals go by the best place that any source that was heard gave them, then by row.
    places = {m.row: min(hits[n].rows.tolist().index(m.row) for n in m.scores) for m in merged}
    keys = [(-m.score, places[m.row], m.row) for m in merged]
    assert keys == sorted(keys)
    assert len({m.row for m in merged}) == len(merged) <= top_k
    for m in merged:
        assert m.scores[m.source] == pytest.approx(lists[m.source][m.row])
        assert m.scores == {n: pytest.approx(lists[n][m.row]) for n in m.scores}


@given(score_lists, st.sampled_from(["weighted", "rrf"]), weight_triples)
def test_every_candidate_is_there_with_what_each_source_said(lists, method, weights):
    merged = Fusion(spec_of(method, weights)).merge({n: hits_of(lists[n]) for n in NAMES}, 100)
    # A rank is worth something at any score; otherwise a row is a candidate where some source gives it more than 0.
    worth = {row for scores in lists.values() for row, score in scores.items() if method == "rrf" or score > 0}
    assert {m.row for m in merged} == worth
    assert all(m.score > 0 for m in merged)
    for m in merged:
        assert set(m.scores) == {n for n in NAMES if m.row in lists[n]}


@given(score_lists, st.sampled_from(["weighted", "rrf"]), weight_triples, st.sampled_from(NAMES), st.data())
def test_a_higher_score_of_one_source_never_hurts(lists, method, weights, name, data):
    assume(lists[name])
    row = data.draw(st.sampled_from(sorted(lists[name])))
    raised = {**lists, name: {**lists[name], row: data.draw(st.floats(lists[name][row], 1, width=32))}}
    fusion = Fusion(spec_of(method, weights))
    before, after = (
        {m.row: m.score for m in fusion.merge({n: hits_of(x[n]) for n in NAMES}, 100)} for x in (lists, raised)
    )
    assert after.get(row, 0.0) >= before.get(row, 0.0) - 1e-9
    if method == "weighted" and ENGINES[NAMES.index(name)] != "lexical":
        assert all(after[other] == pytest.approx(before[other]) for other in before if other != row)
        assert before.keys() <= after.keys() <= before.keys() | {row}


@given(st.dictionaries(st.integers(0, 30), unit, min_size=1, max_size=12), methods, st.sampled_from(NAMES))
def test_a_single_source_keeps_its_order(scores, method, name):
    merged = Fusion(spec_of(method)).merge({name: hits_of(scores)}, 100)
    wanted = [row for row in hits_of(scores).rows.tolist() if method == "rrf" or scores[row] > 0]
    assert [m.row for m in merged] == wanted
    assert {m.source for m in merged} <= {name}


@given(score_lists, methods, st.sampled_from(NAMES))
def test_weight_0_is_as_if_the_source_were_not_there(lists, method, name):
    weights = tuple(0.0 if n == name else 1.0 for n in NAMES)
    hits = {n: hits_of(lists[n]) for n in NAMES}
    fusion = Fusion(spec_of(method, weights))
    assert fusion.merge(hits, 100) == fusion.merge({n: hits[n] for n in NAMES if n != name}, 100)


@given(score_lists, unit)
def test_a_cascade_answers_with_the_first_source_at_the_threshold(lists, threshold):
    spec = spec_of("cascade", threshold=threshold)
    hits = {n: hits_of(lists[n]) for n in NAMES}
    first = next((n for n in NAMES if max(lists[n].values(), default=-1) >= threshold), None)
    assert first == next((n for n in NAMES if decided(hits[n], spec.fusion)), None)
    merged = Fusion(spec).merge(hits, 100)
    if first is None:
        assert merged == Fusion(spec_of("weighted")).merge(hits, 100)
    else:
        # Whether later sources were asked or not changes nothing.
        assert merged == Fusion(spec).merge({first: hits[first]}, 100)
        assert {m.source for m in merged} <= {first}


def test_weighted_is_the_convex_combination_of_scaled_scores():
    hits = {"a": hits_of({1: 0.9, 2: 0.5}), "b": hits_of({2: 12.0, 3: 3.0}), "c": hits_of({1: 0.8, 3: -0.2})}
    merged = {m.row: m for m in Fusion(spec_of("weighted", (2, 1, 1))).merge(hits, 10)}
    assert merged[1].score == pytest.approx(0.5 * 0.9 + 0.25 * 0.8)
    assert merged[2].score == pytest.approx(0.5 * 0.5 + 0.25 * 1.0)
    assert merged[3].score == pytest.approx(0.25 * 0.25)
    assert merged[1].source == "a"
    assert merged[3].source == "b"
    assert merged[3].scores == {"b": pytest.approx(3.0), "c": pytest.approx(-0.2)}


def test_rrf_rewards_agreement_and_ignores_scores():
    hits = {"a": hits_of({1: 0.9, 2: 0.8}), "b": hits_of({2: 40.0, 3: 39.0}), "c": hits_of({4: 0.1})}
    merged = Fusion(spec_of("rrf")).merge(hits, 10)
    assert merged[0].row == 2
    assert merged[0].score == pytest.approx((61 / 62 + 1) / 3)
    assert [m.row for m in merged[1:]] == [1, 4, 3]


@pytest.mark.parametrize(
    ("engine", "scores", "wanted"),
    [
        ("rules", [0.9, 0.2], [0.9, 0.2]),
        ("dense", [0.6, -0.3], [0.6, 0]),
        ("lexical", [30, 15], [1, 0.5]),
        ("lexical", [0.0], [0.0]),
        ("dense", [1.0000002], [1.0]),
    ],
)
def test_scaling_by_engine(engine, scores, wanted):
    hits = Hits(np.arange(len(scores)), np.array(scores, np.float32))
    assert scaled(hits, SourceSpec(engine=engine)).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_score_equal_to_the_threshold_reaches_it(threshold):
    spec = FusionSpec(threshold=threshold)
    assert decided(hits_of({1: threshold}), spec)
    below = np.nextafter(np.float32(threshold), np.float32(0))
    assert not decided(Hits(np.array([1]), np.array([below], np.float32)), spec)


def test_what_no_source_speaks_for_is_no_candidate():
    spec = spec_of(engines=("rules", "dense", "dense"))
    floored = spec.sources["b"].model_copy(update={"options": {"floor": 0.8}})
    fusion = Fusion(spec.model_copy(update={"sources": {**spec.sources, "b": floored}}))
    hits = {"a": hits_of({1: 0.9, 2: 0.0}), "b": hits_of({2: 0.75, 3: 0.85, 4: 0.8}), "c": hits_of({5: -0.1})}
    assert [m.row for m in fusion.merge(hits, 10)] == [1, 3]
    assert fusion.merge({"b": hits_of({2: 0.75})}, 10) == []


def test_nothing_from_nothing():
    assert Fusion(spec_of()).merge({}, 10) == []
    assert Fusion(spec_of()).merge({"a": hits_of({})}, 10) == []
    assert not decided(hits_of({}), FusionSpec(threshold=0))
