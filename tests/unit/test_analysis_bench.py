"""The simulation of `scripts/bench judgement`: its streams are what they claim, its peers follow their rules, and its
bars are judged as they are written."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from bench.judgement.peers import FIXED, TITLES, WINDOW, kayenta_found_after, mann_whitney_is_higher, points_of
from bench.judgement.report import SYSTEMS, bars
from bench.judgement.simulate import BATCH, PALATE, Batch, run_batch
from bench.judgement.streams import FAULTY, MEAN_REWARD, SOUND, TROUBLE, TROUBLE_ERROR, ArmStream, Scenario, Streams

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {scenario.name: scenario for scenario in (*SOUND, *FAULTY)}
FLAGGER, ARGO_EXAMPLE, ARGO_DEFAULT = FIXED


def stream(errors: np.ndarray[Any, Any], latency_ms: float = 10.0) -> ArmStream:
    outcomes = np.where(errors, ord("e"), ord("a")).astype(np.uint8)
    return ArmStream(outcomes, np.full(len(errors), latency_ms), np.ones(len(errors)))


def failing_in_windows(windows: int, failing: set[int], failures: int) -> ArmStream:
    errors = np.zeros((windows, WINDOW), dtype=bool)
    errors[sorted(failing), :failures] = True
    return stream(errors.ravel())


@pytest.mark.parametrize("scenario", BY_NAME.values(), ids=BY_NAME)
def test_streams_are_as_bad_as_their_scenario_says(scenario: Scenario) -> None:
    canary, control = Streams(scenario, (1, 2, 3)).next(400_000)
    trouble = TROUBLE * TROUBLE_ERROR / 400_000 if scenario.trouble else 0.0
    assert np.mean(canary.outcomes == ord("e")) == pytest.approx(scenario.error + trouble, rel=0.15)
    assert np.mean(control.outcomes == ord("e")) == pytest.approx(0.001 + trouble, rel=0.15)
    assert canary.rewards.mean() == pytest.approx(MEAN_REWARD * (1 - scenario.reward_loss), abs=0.005)
    ratio = np.quantile(canary.latencies_ms, [0.5, 0.99]) / np.quantile(control.latencies_ms, [0.5, 0.99])
    assert ratio[0] == pytest.approx(scenario.slower, rel=0.02)
    assert ratio[1] == pytest.approx(scenario.slower * scenario.tail_slower, rel=0.05)


def test_streams_do_not_depend_on_what_was_made_before() -> None:
    same = [Streams(BY_NAME["quiet"], (5,)).next(100)[0].latencies_ms for _ in range(2)]
    assert (same[0] == same[1]).all()


def test_flagger_counts_failed_checks_over_the_whole_analysis() -> None:
    every_other = set(range(0, 40, 2))
    assert FLAGGER.found_after(failing_in_windows(40, every_other, 1)) == 19 * WINDOW
    assert FLAGGER.found_after(failing_in_windows(40, set(range(9)), WINDOW)) is None


def test_argo_allows_failure_limit_failures_of_each_metric() -> None:
    assert ARGO_DEFAULT.found_after(failing_in_windows(10, {3}, 2)) == 4 * WINDOW
    assert ARGO_DEFAULT.found_after(failing_in_windows(10, {3}, 1)) is None
    everywhere = failing_in_windows(30, set(range(30)), 3)
    assert ARGO_EXAMPLE.found_after(everywhere) == 4 * 5 * WINDOW


def test_limits_are_calibrated_to_few_false_rollbacks_and_still_find() -> None:
    quiet = [Streams(BY_NAME["quiet"], (9, n)).next(4000)[0] for n in range(300)]
    peer = ARGO_EXAMPLE.calibrate(quiet)
    assert sum(peer.found_after(arm) is not None for arm in quiet) <= 3
    assert peer.found_after(stream(np.zeros(4000, dtype=bool), latency_ms=1000.0)) == 4 * 5 * WINDOW


def test_points_hold_whole_windows() -> None:
    points = points_of(failing_in_windows(3, {1}, 15))
    assert points.error.tolist() == [0.0, 0.5, 0.0]
    assert points.p95_ms.tolist() == [10.0] * 3
    assert len(points_of(stream(np.zeros(WINDOW - 1, dtype=bool))).error) == 0


def test_mann_whitney_agrees_with_scipy_where_there_is_no_tolerance_to_speak_of() -> None:
    rng = np.random.default_rng(6)
    told = []
    for shift in np.linspace(0, 2, 60):
        canary, control = rng.standard_normal(30) + shift, rng.standard_normal(30)
        higher = mann_whitney_is_higher(canary, control)
        p = mannwhitneyu(canary, control, alternative="greater").pvalue
        assert not (higher and p > 0.0105), "it is stricter than the plain test, by the tolerance"
        assert higher or p > 1e-4
        told.append(higher)
    assert 10 < sum(told) < 60
    assert not mann_whitney_is_higher(np.zeros(30), np.zeros(30))


def test_kayenta_finds_what_is_much_worse_at_its_first_look() -> None:
    canary, control = Streams(BY_NAME["slow-2"], (1,)).next(3000)
    assert kayenta_found_after(canary, control) == 10 * WINDOW
    assert kayenta_found_after(control, control) is None


def test_a_batch_runs_the_shipped_analysis() -> None:
    (found,) = run_batch(Batch(BY_NAME["error-10"], range(1), 1, FIXED))
    assert set(found.after) == set(SYSTEMS)
    assert found.guard == "error"
    assert 20 < (found.after[PALATE] or 0) < 400


RATES = {"quiet": 0.001, "troubled": 0.001, "margins": 0.009}


def result(palate_median: int | None = 90, peer_ratio: float = 0.5, peer_median: int | None = 30) -> dict[str, Any]:
    def systems(palate: Any, peer: Any) -> dict[str, Any]:
        return {PALATE: palate} | {name: deepcopy(peer) for name in TITLES}

    return {
        "sound": {n: {"systems": systems({"ratio": r}, {"ratio": peer_ratio})} for n, r in RATES.items()},
        "faulty": {"error-10": {"systems": systems({"median": palate_median}, {"median": peer_median})}},
    }


@pytest.mark.parametrize(
    ("made_up", "missed"),
    [
        (result(), []),
        (result(palate_median=101), ["error-10"]),
        (result(palate_median=None, peer_median=None), ["error-10"]),
        (result(peer_ratio=0.01), ["no peer"]),
        (result(peer_ratio=0.01, peer_median=90), []),
        (result(peer_ratio=0.01, peer_median=None), []),
    ],
)
def test_bars_are_judged_as_they_are_written(made_up: dict[str, Any], missed: list[str]) -> None:
    judged = bars(made_up)
    assert len(judged) == 5
    found = [bar["asks"] for bar in judged if not bar["met"]]
    assert len(found) == len(missed)
    assert all(asks.startswith(part) for asks, part in zip(found, missed, strict=True))


def test_false_rollbacks_above_the_stated_rate_miss_the_bar() -> None:
    made_up = result()
    made_up["sound"]["troubled"]["systems"][PALATE]["ratio"] = 0.011
    assert [bar["met"] for bar in bars(made_up)] == [True, False, True, True, True]


def test_the_command_saves_table_numbers_and_plot(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "judgement", "--rollouts", str(BATCH), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "| A/A: both arms share an outage |" in done.stdout
    numbers = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert set(numbers["sound"]) == {s.name for s in SOUND}
    assert set(numbers["faulty"]) == {s.name for s in FAULTY}
    assert numbers["sound"]["quiet"]["rollouts"] == BATCH
    assert "errors 10 % against 0.1 %" in (tmp_path / "out" / "judgement.md").read_text()
    assert (tmp_path / "out" / "judgement.png").read_bytes().startswith(b"\x89PNG")
