"""When a run is due: by events, by time, after a kill, and not too soon after a failure."""

from __future__ import annotations

from typing import Any

import pytest

from serving.schema import TrainSpec
from training.runs import Run, Status
from training.triggers import FIRST_PAUSE_S, LONGEST_PAUSE_S, Due, Seen, due, pause_s, told

NOW = 10_000.0


def trains(**triggers: dict[str, float]) -> dict[str, TrainSpec]:
    return {n: TrainSpec.model_validate({"trainer": "contrastive", "trigger": t}) for n, t in triggers.items()}


def run(status: Status, names: tuple[str, ...] = ("taste",), **changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": 1, "app": "teas", "status": status, "request": {"trainings": list(names)}, "why": "", "who": "learner",
        "holder": "h", "attempts": 1, "started_s": NOW - 1000, "heartbeat_s": NOW - 900, "ended_s": NOW - 900,
        "fingerprint": "", "feedback_seq": 0, "version": None, "outcome": {}, "error": "", "mlflow_run": "",
        "live": False, "now_s": NOW,
    }  # fmt: skip
    return Run(**{**values, **changes})


def seen(spec: dict[str, TrainSpec], *runs: Run, events: int = 0, since_s: float = 0.0) -> Seen:
    return Seen(spec, runs, events, since_s, NOW)


def test_enough_new_events() -> None:
    spec = trains(taste={"new_events": 100})
    assert due(seen(spec, events=99)) is None
    assert due(seen(spec, events=100)) == Due(("taste",), "100 new feedback events")
    last = run("gates-failed", feedback_seq=100)
    assert due(seen(spec, last, events=199)) is None
    assert due(seen(spec, last, events=200)) == Due(("taste",), "100 new feedback events")


@pytest.mark.parametrize("status", ["failed", "abandoned", "finished"])
def test_a_run_that_came_to_nothing_does_not_use_up_its_events(status: Status) -> None:
    spec = trains(taste={"new_events": 100})
    last = run(status, feedback_seq=100, ended_s=0.0)
    assert due(seen(spec, last, events=100)) == Due(("taste",), "100 new feedback events")


def test_time_since_the_last_run_or_the_first_release() -> None:
    spec = trains(taste={"every_s": 3600})
    assert due(seen(spec, since_s=NOW - 3599)) is None
    assert due(seen(spec, since_s=NOW - 3600)) == Due(("taste",), "3600 s have passed")
    assert due(seen(spec, run("published", started_s=NOW - 3599))) is None
    assert due(seen(spec, run("published", started_s=NOW - 3600))) == Due(("taste",), "3600 s have passed")


def test_only_what_is_due_is_trained_and_each_by_its_own_last_run() -> None:
    spec = trains(taste={"new_events": 10}, words={"new_events": 100}, never={})
    last = run("published", ("words",), feedback_seq=500, id=2)
    assert due(seen(spec, last, events=505)) == Due(("taste",), "505 new feedback events")
    both = due(seen(spec, run("published", ("taste", "words"), feedback_seq=400), events=600))
    assert both == Due(("taste", "words"), "200 new feedback events")
    assert due(seen(trains(never={}), events=10_000)) is None


def test_while_a_run_lives_nothing_is_due() -> None:
    spec = trains(taste={"new_events": 1})
    assert due(seen(spec, run("running", live=True, ended_s=None), events=50)) is None


def test_what_the_learner_started_goes_on_after_a_kill_and_what_a_person_started_is_left_to_them() -> None:
    spec = trains(taste={"new_events": 100})
    killed = run("running", ended_s=None, id=7)
    assert due(seen(spec, killed)) == Due(("taste",), "run 7 was interrupted")
    assert due(seen(spec, run("running", ended_s=None, who="a person"))) is None


def test_after_failures_it_waits_twice_as_long_each_time() -> None:
    spec = trains(taste={"new_events": 1})
    failed = [run("failed", id=n, ended_s=NOW - FIRST_PAUSE_S * 3) for n in (3, 2)]
    assert due(seen(spec, failed[0], events=5)) is not None
    assert due(seen(spec, failed[0], run("published"), events=5)) is not None
    assert due(seen(spec, *failed, events=5)) is not None
    resumed_and_failed = run("failed", attempts=3, ended_s=NOW - FIRST_PAUSE_S * 3)
    assert due(seen(spec, resumed_and_failed, events=5)) is None
    assert "next try in 60 s" in told(seen(spec, resumed_and_failed, events=5))
    assert [pause_s(n) for n in (1, 2, 3, 500)] == [60, 120, 240, LONGEST_PAUSE_S]


def test_it_says_what_it_waits_for() -> None:
    spec = trains(taste={"new_events": 100, "every_s": 3600})
    assert told(seen(spec, run("published", feedback_seq=40), events=52)) == (
        "taste: 12 of 100 new events; taste: 1000 of 3600 s since the last run"
    )
