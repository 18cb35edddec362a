"""A training run from data set to alias, with a tiny trainer: real database, real pipeline, real gates, real MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.errors import RegistryUnavailable, ReleaseNotFound
from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from serving.schema import AppSpec, Item
from tests.endpoint import build_release, quiet_progress
from tests.learning import APP, ITEMS, RANKER, Classroom, learning_spec, write_made_up_examples
from tests.learning import room as room
from tests.platform import ROOT
from training.errors import RunFenced, TrainingRefused
from training.index import Inputs, ReleaseBuilder
from training.learner import Learner, Settings
from training.run import train
from training.runs import Ask, Runs
from training.triggers import Due


def newest(room: Classroom) -> ReleaseVersion:
    return room.releases.versions(APP)[0]


def in_a_process(room: Classroom, uri: str, spec: AppSpec) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.learning", str(room.home), "", uri, spec.model_dump_json()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


# --- the whole way, in MLflow


def test_a_killed_run_goes_on_with_the_same_data_and_its_candidate_is_on_trial(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    room = Classroom(tmp_path, mlflow_uri=mlflow_uri)
    room.seed()
    runs, spec = Runs(room.database, lease_s=0.2), learning_spec(canary=True, options={"kill_in_step": 3})
    killed = in_a_process(room, mlflow_uri, spec)
    assert killed.returncode == -9, killed.stderr
    left = runs.of(APP)[0]
    assert (left.status, left.fingerprint != "") == ("running", True)
    assert runs.begin(Ask("other", {})).id != left.id
    with room.database.writing() as connection:
        connection.exec_driver_sql("UPDATE leases SET expires_s = 0")  # as if a minute had passed

    write_made_up_examples(room.folder, ITEMS[4:8])  # what came later is for the next run
    done = in_a_process(room, mlflow_uri, spec)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["status"], told["run"], told["why"]) == ("published", left.id, "given the alias canary"), done.stderr
    run = runs.get(left.id)
    assert run is not None
    assert (run.fingerprint, run.attempts, run.version) == (left.fingerprint, 2, 2)

    candidate = room.releases.get(APP, "canary")
    assert candidate.version == 2
    assert (candidate.tags["palate.gates"], candidate.tags["palate.trained_by"]) == ("passed", str(run.id))
    assert "log_loss went from" in candidate.tags["palate.gates_why"]
    lineage = candidate.release.lineage
    assert lineage[f"{RANKER}.trained_by"] == "taste"
    assert (lineage["train.parent"], lineage["train.taste.seed"]) == ("1", "0")
    assert len(lineage["train.taste.dataset"]) == 64

    tracked = MlflowClient(mlflow_uri).get_run(run.mlflow_run)
    assert (tracked.info.status, tracked.data.tags["palate.version"]) == ("FINISHED", "2")
    assert [f.path for f in MlflowClient(mlflow_uri).list_artifacts(run.mlflow_run)] == ["gates.json"]
    assert not list((room.home / "training" / APP).glob("run-*")), "the data of people is kept no longer than needed"
    room.database.close()


def test_a_run_that_had_too_little_data_begins_with_what_there_is_later(room: Classroom) -> None:
    write_made_up_examples(room.folder, ITEMS[:4], count=3)
    with pytest.raises(TrainingRefused, match="positives to train on"):
        train(room.order(), room.means())
    room.items.upsert(APP, [Item("late", {"name": "a tea that came late"})])
    write_made_up_examples(room.folder, [*ITEMS[:4], "late"])
    assert train(room.order(), room.means()).status == "published"
    assert newest(room).release.metrics["items"] == room.items.count(APP)


# --- the same in, the same out


def test_the_same_data_and_seed_give_the_same_release(room: Classroom, tmp_path: Path) -> None:
    train(room.order(), room.means())
    other = Classroom(tmp_path / "elsewhere")
    other.seed()
    train(other.order(), other.means())
    assert newest(room).release.digest == newest(other).release.digest
    assert newest(room).release.lineage == newest(other).release.lineage
    other.database.close()


def test_a_candidate_that_is_stable_is_not_published_again(room: Classroom) -> None:
    train(room.order(), room.means())
    room.releases.set_alias(APP, "stable", 2)
    again = train(room.order(), room.means())
    assert (again.status, again.published) == ("unchanged", None)
    assert "version 2, which is stable" in again.why
    assert len(room.releases.versions(APP)) == 2


# --- what the gates decide


def test_a_candidate_that_fails_is_registered_with_the_reason_and_gets_nothing(room: Classroom) -> None:
    result = train(room.order(learning_spec(canary=True, options={"inverted": True})), room.means())
    assert result.status == "gates-failed"
    version = newest(room)
    assert (version.tags["palate.gates"], version.aliases) == ("failed", frozenset())
    assert "has to lie above" in version.tags["palate.gates_why"]
    assert dict(room.releases.aliases(APP)) == {"stable": 1}


def test_without_canary_in_app_yaml_one_that_passes_gets_no_alias(room: Classroom) -> None:
    result = train(room.order(), room.means())
    assert (result.status, dict(room.releases.aliases(APP))) == ("published", {"stable": 1})


def test_no_publish_keeps_what_was_made_and_registers_nothing(room: Classroom) -> None:
    result = train(room.order(publish=False), room.means())
    assert result.status == "finished"
    assert result.folder is not None
    assert (result.folder / "release" / "catalogue").is_dir()
    assert len(room.releases.versions(APP)) == 1


# --- faults


class Away(MemoryStore):
    """Releases that cannot be published for a while."""

    away = False

    def publish(self, *arguments: Any) -> ReleaseVersion:
        if self.away:
            raise RegistryUnavailable("MLflow is out of reach")
        return super().publish(*arguments)


def test_with_mlflow_away_at_the_end_the_same_command_only_publishes(tmp_path: Path) -> None:
    releases = Away()
    room = Classroom(tmp_path, releases)
    room.seed()
    releases.away = True
    with pytest.raises(RegistryUnavailable):
        train(room.order(), room.means())
    failed = Runs(room.database).of(APP)[0]
    assert (failed.status, failed.error) == ("failed", "MLflow is out of reach")
    releases.away = False

    def never(*_: object) -> Any:
        raise AssertionError("this step was done before")

    result = train(room.order(), room.means(dataset=never, fit=never, judge=never))
    assert (result.run.id, result.status) == (failed.id, "published")
    room.database.close()


def test_a_run_that_lost_its_lease_publishes_nothing(room: Classroom) -> None:
    """Another process takes the run over while this one evaluates."""
    means, order = room.means(), room.order(learning_spec(canary=True))

    def judge_slowly(*arguments: Any) -> Any:
        judged = means.judge(*arguments)
        with room.database.writing() as connection:
            connection.exec_driver_sql("UPDATE leases SET expires_s = 0")
        Runs(room.database).begin(Ask(APP, order.request))
        return judged

    with pytest.raises(RunFenced):
        train(order, replace(means, judge=judge_slowly))
    assert [v.version for v in room.releases.versions(APP)] == [1]
    assert Runs(room.database).of(APP)[0].live, "the other one goes on"


def test_what_cannot_be_trained_is_refused_in_a_sentence(room: Classroom) -> None:
    with pytest.raises(TrainingRefused, match="no 'words' to train; it has \\['taste'\\]"):
        train(room.order(only=("words",)), room.means())
    with pytest.raises(TrainingRefused, match=r"train\.taste\.options\.speed"):
        train(room.order(learning_spec(options={"speed": 1})), room.means())
    assert Runs(room.database).of(APP)[0].status == "failed"
    room.releases.delete_alias(APP, "stable")
    with pytest.raises(TrainingRefused, match="palate index"):
        train(room.order(fresh=True), room.means())


# --- what was trained stays


def test_a_later_build_keeps_what_was_trained_until_it_is_told_otherwise(room: Classroom, tmp_path: Path) -> None:
    train(room.order(), room.means())
    room.releases.set_alias(APP, "stable", 2)
    trained = newest(room).release
    room.items.upsert(APP, [Item("NEW01", {"ko": "우롱차"})])
    later = build_release(room.home, room.releases, learning_spec(), room.items).release
    assert later.component(RANKER) == trained.component(RANKER)
    assert later.component("catalogue") != trained.component("catalogue")
    kept = ("train.taste.dataset", "train.taste.options", f"{RANKER}.trained_by")
    assert [later.lineage[key] for key in kept] == [trained.lineage[key] for key in kept]

    (tmp_path / "work").mkdir()
    builder = ReleaseBuilder(
        learning_spec(), room.folder, tmp_path / "work", room.config, room.releases, quiet_progress(APP)
    )
    back = builder.build(room.items, Inputs(from_base=True)).release
    with pytest.raises(KeyError):
        back.component(RANKER)
    assert not [key for key in back.lineage if key.startswith("train.")]


def test_training_from_stable_begins_with_what_serves(room: Classroom) -> None:
    train(room.order(), room.means())
    room.releases.set_alias(APP, "stable", 2)
    train(room.order(learning_spec(start="stable")), room.means())
    first, second = room.releases.get(APP, 2).release, newest(room).release
    assert second.lineage["train.taste.started_from"] == first.component(RANKER).digest
    assert second.component(RANKER).digest != first.component(RANKER).digest


# --- candidates that wait, and the learner


class NoChild:
    """Stands where `palate train` would be started; remembers what was asked."""

    def __init__(self, program: str = "pass") -> None:
        self.asked: list[tuple[str, Due]] = []
        self._program = program

    def __call__(self, app: str, now: Due, lock: int) -> subprocess.Popen[bytes]:
        self.asked.append((app, now))
        return subprocess.Popen([sys.executable, "-c", self._program], pass_fds=(lock,))


def learner(room: Classroom, start: NoChild | None = None) -> Learner:
    folders = {APP: room.folder}
    return Learner(folders, room.home, room.database, room.releases, start=start or NoChild(), settings=Settings())


def test_a_candidate_waits_for_the_trial_before_it_and_a_newer_one_takes_its_place(room: Classroom) -> None:
    room.releases.set_alias(APP, "canary", 1)
    looks = learner(room)
    first = train(room.order(learning_spec(canary=True)), room.means())
    assert first.status == "waiting"
    assert "version 1 is on trial" in newest(room).tags["palate.canary"]
    looks.tick()
    assert room.releases.aliases(APP)["canary"] == 1
    second = train(room.order(learning_spec(canary=True, seed=1)), room.means())
    assert second.status == "waiting"
    assert [run.status for run in Runs(room.database).of(APP)] == ["waiting", "superseded"]
    assert "version 3 passed" in room.releases.get(APP, 2).tags["palate.canary"]
    room.releases.delete_alias(APP, "canary")
    looks.tick()
    looks.tick()
    assert room.releases.aliases(APP)["canary"] == 3
    assert Runs(room.database).of(APP)[0].status == "published"
    looks.close()


def test_a_run_that_may_not_have_canary_leaves_those_that_wait(room: Classroom) -> None:
    room.releases.set_alias(APP, "canary", 1)
    train(room.order(learning_spec(canary=True)), room.means())
    second = train(room.order(learning_spec(canary=False, seed=1)), room.means())
    assert second.status == "published"
    assert [run.status for run in Runs(room.database).of(APP)] == ["published", "waiting"]


def test_a_candidate_that_waited_while_stable_moved_is_too_late(room: Classroom) -> None:
    room.releases.set_alias(APP, "canary", 1)
    train(room.order(learning_spec(canary=True)), room.means())
    build_release(room.home, room.releases, learning_spec(seed=5), room.items)
    room.releases.set_alias(APP, "stable", 3)
    room.releases.delete_alias(APP, "canary")
    looks = learner(room)
    looks.tick()
    assert dict(room.releases.aliases(APP)) == {"stable": 3}
    assert "stable is 3 now" in room.releases.get(APP, 2).tags["palate.canary"]
    looks.close()


def serve_with(room: Classroom, **section: Any) -> None:
    """Make a release with this section `train` stable."""
    release = build_release(room.home, room.releases, learning_spec(**section), room.items).release
    version = next(v.version for v in room.releases.versions(APP) if v.release.digest == release.digest)
    room.releases.set_alias(APP, "stable", version)


def test_the_learner_starts_one_run_at_a_time_also_after_it_was_killed(room: Classroom) -> None:
    from tests.waiting import wait_for

    serve_with(room, trigger={"every_s": 60})
    with room.database.writing() as connection:  # the last run began two minutes ago
        connection.exec_driver_sql(
            "INSERT INTO training_runs (app, status, request, why, who, holder, attempts, started_s, heartbeat_s, "
            "ended_s, fingerprint, feedback_seq, outcome, error, mlflow_run) VALUES ('teas', 'published', "
            "'{\"trainings\": [\"taste\"]}', '', '', '', 1, 0, 0, 0, '', 0, '{}', '', '')"
        )
    start = NoChild("import time; time.sleep(60)")
    one = learner(room, start)
    one.tick()
    one.tick()
    assert start.asked == [(APP, Due(("taste",), "60 s have passed"))]
    child = one.training
    assert child is not None
    Runs(room.database).release_learner(one.settings.holder)  # as after a kill: its child lives on
    another = NoChild()
    two = learner(room, another)
    two.tick()
    assert another.asked == []
    assert "waiting for another run" in json.loads((room.home / "run" / "learner.json").read_text())["apps"][APP]
    one.close()
    wait_for(lambda: bool(two.tick() and another.asked))
    two.close()


def test_of_two_learners_one_acts_and_a_failing_child_is_not_started_in_a_loop(room: Classroom) -> None:
    from tests.waiting import wait_for

    serve_with(room, trigger={"new_events": 1})
    with room.database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO counters (app, name, value) VALUES ('teas', 'feedback', 5)")
    start = NoChild("raise SystemExit(1)")
    one, two = learner(room, start), learner(room)
    assert [one.tick(), two.tick()] == [True, False]
    wait_for(lambda: one.tick() and one.training is None)
    for _ in range(3):
        one.tick()
    assert len(start.asked) == 1
    one.close()
    two.close()


def test_a_learner_whose_registry_is_away_says_so_and_goes_on(room: Classroom) -> None:
    looks = learner(room)
    room.releases.delete_alias(APP, "stable")
    with pytest.raises(ReleaseNotFound):
        room.releases.get(APP, "stable")
    assert looks.tick()
    said = json.loads((room.home / "run" / "learner.json").read_text())["apps"]
    assert said == {APP: "no stable release yet"}
    looks.close()
