"""Training on real Ray: workers that agree, are lost and come back, a driver that is killed, a search.

One Ray for all of them, started as a job starts its own.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests.tiny_trainer import TinyOptions, TinyTrainer, tiny_task
from tests.waiting import wait_for
from training.errors import TrainingFailed, TrainingRefused
from training.fakes import MemoryTracking
from training.job.cluster import Where, ray_cluster
from training.job.fit import fit
from training.job.search import Around, search
from training.ports import Loop, StopTraining, Task, Trained
from training.progress import Progress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    before = dict(os.environ)
    try:
        with ray_cluster(Where()):
            import ray

            yield ray.get_runtime_context().gcs_address
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(
    task: Task,
    where: Where,
    tracking: MemoryTracking | None = None,
    trainer: TinyTrainer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    return fit(
        trainer or TinyTrainer(),
        task,
        where=where,
        progress=Progress("tiny", Console(file=io.StringIO())),
        tracking=tracking or MemoryTracking(),
        stop=stop,
    )


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


class Curious(TinyTrainer):
    """Writes down what its loop sees, once per worker: the contract of a Loop."""

    def loop(self, task: Task, loop: Loop) -> None:
        saved: list[str] = []

        def save(folder: Path) -> None:
            saved.append(" ".join(p.name for p in folder.iterdir()))
            (folder / "state").write_text("one")

        def broken(folder: Path) -> None:
            raise OSError("cannot be written")

        seen = {"place": [loop.rank, loop.world, loop.device], "first": loop.restore() is None}
        loop.total(10)
        loop.report(1, {"loss": 1}, save)
        seen["restored"] = (loop.restore() or task.work).joinpath("state").read_text()
        try:
            loop.report(2, {"loss": 1}, broken)
        except Exception as error:  # noqa: BLE001 - its type differs by rank
            seen["broken"] = type(error).__name__
        seen["kept"] = (loop.restore() or task.work).joinpath("state").read_text()
        try:
            for step in range(3, 100_000):
                time.sleep(0.002)  # the driver has minutes to say stop, however busy the machine is
                loop.report(step, {"loss": 1})
        except StopTraining:
            seen["stopped"] = True
        seen["saved"] = saved
        (task.work / f"seen-{loop.rank}").write_text(json.dumps(seen))
        raise ValueError(f"worker {loop.rank} had enough")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_keeps_its_contract(request: pytest.FixtureRequest, tmp_path: Path, workers: int) -> None:
    """Without Ray (0), and in two workers."""
    if workers:
        request.getfixturevalue("ray_address")
    task = tiny_task(tmp_path / "work", TinyOptions(), workers=max(workers, 1))
    tracking = MemoryTracking()
    with pytest.raises(TrainingFailed, match=r"ValueError in the trainer's loop: worker \d had enough"):
        run(task, Where(plain=not workers), tracking, Curious(), stop=lambda: len(tracking.logged) >= 5)
    for rank in range(max(workers, 1)):
        seen = json.loads((task.work / f"seen-{rank}").read_text())
        assert seen == {
            "place": [rank, max(workers, 1), "cpu"],
            "first": True,
            "restored": "one",
            "broken": "OSError" if rank == 0 else "PeerFailed",
            "kept": "one",
            "stopped": True,
            "saved": [""] if rank == 0 else [],
        }
    assert [step for _, _, step in tracking.logged][:3] == [1, 3, 4]


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(ray_address: str, tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "killed" / "work", TinyOptions(die_at=8), workers=2)
    tracking = MemoryTracking()
    trained = run(task, Where(), tracking)
    assert lines(task.work / "restored") == [6, 6], "both workers went on from the last checkpoint"
    steps = [s for name, _, s in tracking.logged if name == "loss"]
    # The other worker may be ended before it tells of the step that it shared with the one that died in it.
    assert steps in ([*range(1, 9), *range(7, 13)], [*range(1, 8), *range(7, 13)])
    alone = run(tiny_task(tmp_path / "alone" / "work", TinyOptions()), Where(plain=True))
    assert trained.metrics == pytest.approx(alone.metrics, rel=1e-4), "two workers compute the same gradient"


def test_a_driver_that_is_killed_goes_on_from_its_last_checkpoint(ray_address: str, tmp_path: Path) -> None:
    options = TinyOptions(steps=40, save_every=4)
    undisturbed = run(tiny_task(tmp_path / "calm" / "work", options), Where(plain=True))
    task = tiny_task(tmp_path / "killed" / "work", options)
    task.work.mkdir()
    (task.work / "hold").write_text("9")
    log = tmp_path / "driver.log"
    with log.open("wb") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.test_training_job", str(task.work), ray_address],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        saved = task.work / ".job" / "checkpoints"
        wait_for(lambda: (saved / "step-000000008").exists() or driver.poll() is not None, 240, "a checkpoint")
        assert driver.poll() is None, log.read_text()
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    worker = int((task.work / "process-0").read_text())
    wait_for(lambda: not psutil.pid_exists(worker), 120, "Ray ends the workers of a driver that is gone")
    (task.work / "hold").unlink()
    assert not (task.work / ".job" / "done.json").exists()
    tracking = MemoryTracking()
    assert run(task, Where(), tracking).metrics == undisturbed.metrics
    assert lines(task.work / "restored") == [8]
    assert tracking.logged[0][2] == 9


def test_what_the_cluster_cannot_give_is_refused_with_figures(ray_address: str, tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "work", TinyOptions(), workers=3, num_cpus=100)
    with pytest.raises(TrainingRefused, match=r"asks for 300 CPU \(3 x 100\) and in all \d+ there"):
        run(task, Where())
    with pytest.raises(TrainingRefused, match=r"waited 1 s .*asks for 300 CPU"):
        run(task, Where(address=ray_address, wait_s=1))


def test_a_search_finds_the_best_trial_and_goes_on_where_it_was_killed(ray_address: str, tmp_path: Path) -> None:
    # One trial at a time: which of them ASHA gives up on depends on who comes first.
    task = tiny_task(tmp_path / "work", TinyOptions(rate=0.0001), num_cpus=len(os.sched_getaffinity(0)))
    tracking = MemoryTracking()
    around = Around(Where(), Progress("tiny", Console(file=io.StringIO())), tracking)
    found = search(TinyTrainer(), task, 3, around)
    assert len(found.trials) == 3
    assert {t.status for t in found.trials} <= {"finished", "stopped"}
    finished = [t for t in found.trials if t.status == "finished" and t.metric is not None]
    assert found.metric == min(t.metric for t in finished if t.metric is not None)
    assert found.options["rate"] > 0.0001
    TinyOptions.model_validate(found.options)
    for trial in found.trials:
        child = tracking.children[f"trial {trial.number}"]
        assert child.state == "FINISHED"
        assert child.set_params["rate"] == str(trial.options["rate"])
        assert any(name == "validation_loss" for name, _, _ in child.logged)
    again = MemoryTracking()
    repeated = search(TinyTrainer(), task, 3, Around(around.where, around.progress, again))
    best = next(t for t in found.trials if t.metric == found.metric)
    assert again.children[f"trial {best.number}"].logged == [], "it was not trained again"
    assert (repeated.metric, repeated.options) == (found.metric, found.options)


def test_a_search_whose_run_was_taken_over_stops_and_keeps_what_it_has(ray_address: str, tmp_path: Path) -> None:
    task = tiny_task(tmp_path / "work", TinyOptions(steps=1000, save_every=2))
    trials = task.work / ".job" / "trials"
    (trials / "000").mkdir(parents=True)
    (trials / "000" / "hold").write_text("3")
    tracking = MemoryTracking()

    def taken_over() -> bool:
        if any(step >= 3 for child in tracking.children.values() for _, _, step in child.logged):
            (trials / "000" / "hold").unlink(missing_ok=True)
            return True
        return False

    around = Around(Where(), Progress("tiny", Console(file=io.StringIO())), tracking, taken_over)
    with pytest.raises(StopTraining, match="was stopped"):
        search(TinyTrainer(), task, 1, around)
    assert [path.name for path in trials.glob("000/.job/checkpoints/step-*")] != []
    assert not (trials / "000" / ".job" / "checkpoints" / "step-000001000").exists()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    work, address = sys.argv[1:]
    run(tiny_task(Path(work), TinyOptions(steps=40, save_every=4)), Where(address=address))
