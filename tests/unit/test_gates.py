"""What passes a gate and what does not: sets, slices, first releases, metrics of which less is better."""

from __future__ import annotations

import json

import numpy as np
import pytest

from serving.schema import GateSpec
from training.cases import Case
from training.errors import TrainingRefused
from training.evaluate import RankedAnswer, Report, report_of
from training.evidence import Compared, Ranked, Scored, TokenScores, compare
from training.gates import contrast, judge, render

RIGHT, WRONG = RankedAnswer(("a", "b")), RankedAnswer(("b", "c"))


def reports(*slices: tuple[str, int, float, float]) -> dict[str, Compared]:
    """A set whose slices (name, cases, share right of stable, of the candidate) have their right cases first."""
    cases, answers = [], {"stable": [], "candidate": []}
    for name, count, stable, candidate in slices:
        cases += [Case(f"{name} {n}", frozenset({"a"}), name) for n in range(count)]
        for side, share in (("stable", stable), ("candidate", candidate)):
            answers[side] += [RIGHT if n < share * count else WRONG for n in range(count)]
    made = {side: {"test": report_of(cases, given, 10)} for side, given in answers.items()}
    return compare(made["candidate"], made["stable"])


def passes(compared: dict[str, Compared], **gate: object) -> bool:
    return judge({"test": GateSpec.model_validate(gate)}, compared, seed=0).passed


def test_a_clear_gain_is_better_and_a_clear_loss_is_not() -> None:
    assert passes(reports(("all", 300, 0.6, 0.7)))
    assert not passes(reports(("all", 300, 0.7, 0.6)))


def test_a_gain_has_to_exceed_the_margin() -> None:
    compared = reports(("all", 300, 0.6, 0.7))
    assert passes(compared, margin=0.05)
    assert not passes(compared, margin=0.09)


def test_no_difference_is_no_worse_but_not_better() -> None:
    compared = reports(("all", 50, 0.5, 0.5))
    assert not passes(compared)
    assert passes(compared, require="no_worse")


def test_no_worse_needs_proof_too() -> None:
    assert passes(reports(("all", 1000, 0.8, 0.795)), require="no_worse", margin=0.02)
    assert not passes(reports(("all", 1000, 0.8, 0.78)), require="no_worse", margin=0.02)
    # Three cases lost one: that may well be a loss of two points and more.
    assert not passes(reports(("all", 3, 1.0, 0.6)), require="no_worse", margin=0.02)


class TestSlices:
    def test_one_that_loses_stops_a_set_that_gains(self) -> None:
        compared = reports(("ko", 500, 0.3, 0.6), ("en", 100, 0.9, 0.6))
        report = judge({"test": GateSpec()}, compared, seed=0)
        assert not report.passed
        (gate,) = report.gates
        assert gate.overall.passed
        assert [(row.name, row.passed) for row in gate.slices] == [("ko", True), ("en", False)]
        assert "'en' (100 cases) may lose 10.0 points and lost more: -30.0 points" in gate.sentence
        assert report.reason == gate.sentence

    def test_without_a_margin_they_are_shown_but_not_judged(self) -> None:
        assert passes(reports(("ko", 500, 0.3, 0.6), ("en", 100, 0.9, 0.6)), slice_margin=None)

    def test_three_lost_cases_are_noise_and_a_dozen_are_not(self) -> None:
        assert passes(reports(("ko", 500, 0.3, 0.6), ("rare", 3, 1.0, 0.0)))
        assert not passes(reports(("ko", 500, 0.3, 0.6), ("rare", 12, 1.0, 0.0)))

    def test_a_loss_within_the_margin_is_allowed(self) -> None:
        assert passes(reports(("ko", 500, 0.3, 0.6), ("en", 400, 0.9, 0.85)), slice_margin=0.1)

    def test_many_slices_do_not_stop_a_candidate_by_chance(self) -> None:
        rng = np.random.default_rng(1)
        stopped = 0
        for world in range(10):
            cases = [Case(str(n), frozenset({"a"}), f"s{n % 20}") for n in range(600)]
            both = [report_of(cases, [RIGHT if r else WRONG for r in rng.random(600) < 0.7], 10) for _ in range(2)]
            compared = compare({"test": both[0]}, {"test": both[1]})
            (gate,) = judge({"test": GateSpec(slice_margin=0.05)}, compared, seed=world).gates
            stopped += not all(row.passed for row in gate.slices)
        assert stopped <= 1


def test_a_first_release_passes_with_a_note() -> None:
    candidate = reports(("all", 5, 0.5, 0.6))["test"].candidate
    report = judge({"test": GateSpec()}, {"test": Compared(candidate, None)}, seed=0)
    assert report.passed
    assert "First release" in report.note
    assert report.gates[0].overall.candidate == pytest.approx(0.6)


def test_no_cases_and_no_measurement_are_no_proof() -> None:
    empty = report_of([], [], 10)
    report = judge({"test": GateSpec(), "gone": GateSpec()}, compare({"test": empty}, {"test": empty}), seed=0)
    assert [gate.passed for gate in report.gates] == [False, False]
    assert "too few" in report.gates[0].sentence
    assert "not measured" in report.gates[1].sentence


def test_without_gates_a_report_says_that_nothing_was_judged() -> None:
    report = judge({}, {}, seed=0)
    assert report.passed
    assert "nothing was judged" in report.note


def test_a_metric_that_the_set_cannot_give_is_refused() -> None:
    with pytest.raises(TrainingRefused, match=r"gates\.test\.metric"):
        judge({"test": GateSpec(metric="auc")}, reports(("all", 5, 0.5, 0.6)), seed=0)


def test_other_cases_cannot_be_compared() -> None:
    one, other = reports(("all", 5, 0.5, 0.6))["test"], reports(("all", 5, 0.5, 0.6), ("x", 1, 0, 0))["test"]
    with pytest.raises(ValueError, match="same cases"):
        Compared(one.candidate, other.stable)


def scored(noise: float, seed: int = 0, cases: int = 400) -> Scored:
    """Probabilities that know the label the less the more noise there is."""
    rng = np.random.default_rng(9)
    labels = (rng.random(cases) < 0.4).astype(float)
    logits = 2 * labels - 1 + np.random.default_rng(seed).normal(0, noise, cases)
    weights = rng.choice([1.0, 1.5, 2.0], cases)
    few = np.flatnonzero(np.arange(cases) < 10)
    return Scored(labels, 1 / (1 + np.exp(-logits)), weights, {"few": few, "half": np.arange(cases // 2)}, "set")


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_scored_labels_are_compared(metric: str) -> None:
    good, bad = scored(0.5, 1), scored(3.0, 2)
    assert passes({"test": Compared(good, bad)}, metric=metric)
    assert not passes({"test": Compared(bad, good)}, metric=metric, require="no_worse")
    assert passes({"test": Compared(good, good)}, metric=metric, require="no_worse")


def test_small_slices_of_a_metric_that_is_no_mean_are_not_judged() -> None:
    good, bad = scored(0.5, 1), scored(3.0, 2)
    (gate,) = judge({"test": GateSpec(metric="auc")}, {"test": Compared(bad, good)}, seed=0).gates
    assert [(row.name, row.passed) for row in gate.slices] == [("few", True), ("half", False)]


def test_calibration_of_a_candidate_that_exaggerates_is_worse() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random(2000)
    labels = (rng.random(2000) < truth).astype(float)
    honest, loud = (Scored(labels, p, key="c") for p in (truth, np.clip(3 * truth - 1, 0.01, 0.99)))
    assert passes({"test": Compared(honest, loud)}, metric="calibration_error")
    assert not passes({"test": Compared(loud, honest)}, metric="calibration_error", require="no_worse")


def test_less_perplexity_is_better_and_its_margin_is_a_share() -> None:
    rng = np.random.default_rng(6)
    tokens = rng.integers(20, 60, 200).astype(float)
    stable = -tokens * rng.normal(2.0, 0.1, 200)
    compared = {"test": Compared(TokenScores(stable + 0.1 * tokens, tokens), TokenScores(stable, tokens))}
    report = judge({"test": GateSpec(metric="perplexity", margin=0.05)}, compared, seed=0)
    assert report.passed
    assert report.gates[0].overall.difference == pytest.approx(0.1)
    assert "+10.0 %" in report.gates[0].sentence
    assert not passes({"test": Compared(compared["test"].stable, compared["test"].candidate)}, metric="perplexity")  # type: ignore[arg-type]


def test_the_report_is_json_and_the_same_for_the_same_seed() -> None:
    compared = reports(("ko", 50, 0.3, 0.6), ("en", 20, 0.9, 0.6))
    first, second = (judge({"test": GateSpec()}, compared, seed=3) for _ in range(2))
    back = json.loads(json.dumps(first.to_json()))
    assert back == json.loads(json.dumps(second.to_json()))
    assert back["gates"][0]["overall"]["interval"][0] < back["gates"][0]["overall"]["difference"]
    assert set(first.metrics()) == {f"gate_test_success_at_k_{what}" for what in ("difference", "low", "high")}


def test_rendered_for_a_person() -> None:
    text = render(judge({"test": GateSpec()}, reports(("ko", 500, 0.3, 0.6), ("en", 100, 0.9, 0.6)), seed=0))
    assert "Gates: FAILED." in text
    row = next(line for line in text.splitlines() if line.startswith("en "))
    assert row.split()[1:6] == ["100", "90.0", "%", "60.0", "%"]
    assert row.endswith("FAILED")


def test_a_contrast_shows_the_set_and_its_slices() -> None:
    rows = contrast("test", reports(("ko", 50, 0.3, 0.6), ("en", 20, 0.9, 0.6))["test"], "mrr")
    assert [(row.name, row.cases) for row in rows] == [("all", 70), ("ko", 50), ("en", 20)]


def test_a_report_keeps_no_values_of_single_cases_in_json() -> None:
    evidence = reports(("ko", 50, 0.3, 0.6))["test"].candidate
    assert isinstance(evidence, Ranked)
    report: Report = evidence.report
    assert report.values["success_at_k"].shape == (50,)
    assert set(report.to_json()) == {"k", "overall", "slices", "failures"}
