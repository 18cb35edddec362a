"""`fit` without Ray, and the parts of a search that need none."""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from tests.tiny_trainer import TinyOptions, TinyTrainer, tiny_task
from training.errors import TrainingFailed, TrainingRefused
from training.fakes import MemoryTracking
from training.job.channel import Mailbox, Outbox
from training.job.cluster import Where
from training.job.fit import fit
from training.job.ray_train import until_done
from training.job.search import draw
from training.job.work import task_digest
from training.ports import Loop, StopTraining, Task, Trained
from training.progress import Progress


def run(
    task: Task,
    tracking: MemoryTracking | None = None,
    stop: Callable[[], bool] = lambda: False,
    where: Where | None = None,
) -> Trained:
    return fit(
        TinyTrainer(),
        task,
        where=where or Where(plain=True),
        progress=Progress("tiny", Console(file=io.StringIO())),
        tracking=tracking or MemoryTracking(),
        stop=stop,
    )


def restored(task: Task) -> list[int]:
    path = task.work / "restored"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_every_step_is_tracked_and_the_result_is_finished(tmp_path: Path) -> None:
    tracking = MemoryTracking()
    trained = run(tiny_task(tmp_path / "work", TinyOptions()), tracking)
    assert trained.metrics["step"] == 12
    assert [step for name, _, step in tracking.logged if name == "loss"] == list(range(1, 13))
    assert [step for name, _, step in tracking.logged if name == "validation_loss"] == [3, 6, 9, 12]


def test_stopped_and_continued_is_as_undisturbed(tmp_path: Path) -> None:
    whole = run(tiny_task(tmp_path / "whole" / "work", TinyOptions()))
    task = tiny_task(tmp_path / "parts" / "work", TinyOptions())
    asked = iter([False] * 7 + [True])
    with pytest.raises(StopTraining):
        run(task, stop=lambda: next(asked))
    tracking = MemoryTracking()
    assert run(task, tracking).metrics == whole.metrics
    assert restored(task) == [6]
    assert [step for name, _, step in tracking.logged if name == "loss"] == list(range(7, 13))


def test_a_loop_that_ended_is_not_run_again(tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "work", TinyOptions())
    first = run(task)
    tracking = MemoryTracking()
    assert run(task, tracking).metrics == first.metrics
    assert tracking.logged == []


def test_other_options_start_afresh(tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "work", TinyOptions())
    run(task)
    other = run(tiny_task(tmp_path / "work", TinyOptions(rate=0.01)))
    assert restored(task) == []
    assert other.metrics == run(tiny_task(tmp_path / "fresh" / "work", TinyOptions(rate=0.01))).metrics


def test_the_error_of_a_loop_is_one_line_and_the_log_has_the_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(TrainingFailed) as error:
        run(tiny_task(tmp_path / "work", TinyOptions(fail_at=5)))
    assert str(error.value).startswith("ValueError in the trainer's loop: the line is not straight: step 5")
    assert "\n" not in str(error.value)
    assert "in _misbehave" in caplog.text


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "work", TinyOptions(full_at=6))
    with pytest.raises(TrainingRefused, match="step 6"):
        run(task)
    with pytest.raises(TrainingRefused, match="step 6"):
        run(task)
    assert restored(task) == [3]


def test_a_loop_that_saves_nothing_is_an_error(tmp_path: Path) -> None:
    class Forgetful(TinyTrainer):
        def loop(self, task: Task, loop: Loop) -> None:
            loop.report(1, {})

    with pytest.raises(TrainingFailed, match="without having saved"):
        fit(
            Forgetful(),
            tiny_task(tmp_path / "work", TinyOptions()),
            where=Where(plain=True),
            progress=Progress("tiny", Console(file=io.StringIO())),
            tracking=MemoryTracking(),
        )


def test_without_ray_there_is_one_worker(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match=re.escape("`scaling.workers` is 2")):
        run(tiny_task(tmp_path / "work", TinyOptions(), workers=2))


def test_the_digest_is_of_what_the_result_depends_on(tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "work", TinyOptions())
    digest = task_digest(TinyTrainer(), task)
    assert task_digest(TinyTrainer(), replace(task, work=tmp_path / "elsewhere")) == digest
    assert task_digest(TinyTrainer(), tiny_task(tmp_path / "work", TinyOptions(), workers=2)) == digest
    assert task_digest(TinyTrainer(), replace(task, seed=1)) != digest
    (task.items).write_text('{"id": "2"}')
    assert task_digest(TinyTrainer(), task) != digest


def test_where_reads_the_environment() -> None:
    assert Where.from_env({}) == Where()
    assert Where.from_env({"RAY_ADDRESS": "10.0.0.1:6379"}).address == "10.0.0.1:6379"
    assert Where.from_env({"RAY_ADDRESS": "10.0.0.1:6379", "PALATE_RAY_ADDRESS": "local"}) == Where()
    assert Where.from_env({"PALATE_RAY_ADDRESS": "none"}).plain


def test_an_earlier_attempt_is_told_to_stop_by_a_later_one(tmp_path: Path) -> None:
    first = Mailbox(tmp_path, 1)
    worker = Outbox(tmp_path, first.attempt, 0)
    assert not worker.told_to_stop()
    second = Mailbox(tmp_path, 1)
    assert worker.told_to_stop()
    now = Outbox(tmp_path, second.attempt, 0)
    assert not now.told_to_stop()
    second.stop()
    assert now.told_to_stop()


def test_half_an_event_waits_for_its_end(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, 1)
    assert mailbox.drain() == []
    Outbox(tmp_path, mailbox.attempt, 0).tell({"kind": "total", "steps": 3})
    path = next((tmp_path / "events").iterdir())
    with path.open("a") as file:
        file.write('{"kind": "sto')
    assert mailbox.drain() == [{"kind": "total", "steps": 3}]
    with path.open("a") as file:
        file.write('pped"}\n')
    assert mailbox.drain() == [{"kind": "stopped"}]


def test_lost_workers_are_given_up_when_they_come_no_further() -> None:
    steps = iter([0, 0, 5, 5, 5])
    tried: list[int] = []
    with pytest.raises(TrainingFailed, match="lost workers 3 times in a row without a new checkpoint: it was dark"):
        until_done(lambda: tried.append(1) or "it was dark", lambda: next(steps), 2, "training line")
    assert len(tried) == 4, "a new checkpoint starts the count again"


def test_a_loop_that_came_to_its_end_is_not_tried_again() -> None:
    said = iter(["it was dark", None])
    until_done(lambda: next(said), lambda: 0, 1, "training line")
    assert next(said, "nothing left") == "nothing left"


def test_trials_are_drawn_by_the_seed_and_start_with_the_options_as_they_are() -> None:
    trainer, options = TinyTrainer(), TinyOptions()
    drawn = draw(trainer, options, 20, 3)
    assert drawn == draw(trainer, options, 20, 3)
    assert drawn != draw(trainer, options, 20, 4)
    assert drawn[0] == options
    assert len(drawn) == 20
    values = [o.model_dump() for o in drawn]
    rates = [math.log10(v["rate"]) for v in values[1:]]
    assert -4 <= min(rates) < -3.2, "log-uniform: both ends are reached"
    assert -1.8 < max(rates) < -0.69
    assert {v["save_every"] for v in values} == {1, 2, 3}


def test_a_small_space_gives_fewer_trials_and_none_is_refused() -> None:
    class Small(TinyTrainer):
        def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:
            return {"save_every": (1, 3)}

    class Empty(TinyTrainer):
        def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:
            return {}

    assert [o.model_dump()["save_every"] for o in draw(Small(), TinyOptions(), 9, 0)] == [3, 1]
    with pytest.raises(TrainingRefused, match="nothing to search"):
        draw(Empty(), TinyOptions(), 3, 0)
