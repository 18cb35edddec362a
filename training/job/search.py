"""Try several sets of options and keep the best: Ray Tune with ASHA (Li et al., arXiv 1810.05934).

Called by `training.run` for `palate train APP --tune N`. A trial is the trainer's loop on one worker, judged by the
`objective` that it reports (lower is better). The first trial has the options of app.yaml; the others are drawn
from `Trainer.search_space` by the task's seed.

A search that was killed goes on: every trial keeps checkpoints and its reports. Tune gets the reports again, up to
the checkpoint, and the trial goes on from there, so that ASHA compares what it compared before. Tune's own snapshots
are not used for that: they are written every few seconds only, and hold pickled objects of the release that wrote them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from training.errors import TrainingFailed, TrainingRefused
from training.job.channel import Event, Mailbox, Outbox
from training.job.checkpoint import Checkpoints
from training.job.cluster import NICENESS, Where, check_fits, ray_cluster, resources
from training.job.fit import resolved
from training.job.follow import failure
from training.job.loop import CHECKPOINTS, JobLoop, Place, Work, run_loop
from training.job.work import Job
from training.ports import OBJECTIVE, StopTraining, Task, Trainer
from training.progress import Progress
from training.tracking import Tracking

PERCENT = "percent"
GRACE_PERCENT = 20
"""Of its steps that every trial gets ..."""
REDUCTION = 3
"""... and of those that come so far, one in three goes on; so again at 60 %."""
LOOK_S = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """`metric`: its last `objective`; None where it reported none."""

    number: int
    options: Mapping[str, Any]
    status: Literal["finished", "stopped", "failed"]
    metric: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The best of the trials that came to their end: all its options, valid for the trainer's model."""

    options: Mapping[str, Any]
    metric: float
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Around:
    """What a search runs in, and whom it tells."""

    where: Where
    progress: Progress
    tracking: Tracking
    stop: Callable[[], bool] = lambda: False


def search(trainer: Trainer, task: Task, trials: int, around: Around) -> Found:
    """Raises TrainingRefused for a trainer without a search space or a cluster without room, TrainingFailed when no
    trial came to its end with an `objective`, StopTraining as `fit`."""
    one = _on_one_worker(resolved(task))
    drawn = draw(trainer, one.options, trials, task.seed)
    jobs = [_Trial(n, Job(trainer, _trial_task(one, n, options), around.where)) for n, options in enumerate(drawn)]
    for trial in jobs:
        trial.tracking = around.tracking.child(f"trial {trial.number}")
        trial.tracking.params(trial.job.task.options.model_dump(mode="json"))
    with (
        ray_cluster(around.where),
        around.progress.step(f"{task.name}: {len(jobs)} trials, percent", 100 * len(jobs)) as show,
    ):
        check_fits(around.where, one.train.scaling, 1)
        _run(jobs, one, around.stop, show)
    results = tuple(trial.result() for trial in jobs)
    best = min(
        (r for r in results if r.status == "finished" and r.metric is not None and math.isfinite(r.metric)),
        key=lambda r: (r.metric, r.number),
        default=None,
    )
    if best is None or best.metric is None:
        why = next((r.error for r in results if r.error), f"none reported {OBJECTIVE!r}")
        raise TrainingFailed(f"none of {len(results)} trials came to its end: {why}")
    return Found(best.options, best.metric, results)


def draw(trainer: Trainer, options: BaseModel, trials: int, seed: int) -> list[BaseModel]:
    """The options as they stand, and `trials - 1` others, no two alike; fewer where the space has no more. Raises
    TrainingRefused."""
    space = trainer.search_space(options)
    if not space:
        raise TrainingRefused(f"the trainer {trainer.name} has nothing to search over")
    chance = random.Random(seed)
    found = [options]
    for _ in range(20 * trials):
        if len(found) >= trials:
            break
        changed = {name: _draw(choices, chance) for name, choices in sorted(space.items())}
        try:
            candidate = type(options).model_validate({**options.model_dump(), **changed})
        except ValidationError as error:
            raise TrainingRefused(f"the search space of {trainer.name} leaves its options: {error}") from None
        if candidate not in found:
            found.append(candidate)
    return found


def _draw(choices: tuple[Any, ...], chance: random.Random) -> Any:
    """Log-uniform between two floats above 0, which is what learning rates and weights are; else one of them."""
    if len(choices) == 2 and all(isinstance(c, float) and c > 0 for c in choices):
        low, high = choices
        return math.exp(chance.uniform(math.log(low), math.log(high)))
    return chance.choice(choices)


@dataclass(slots=True)
class _Trial:
    """A trial as the driver sees it."""

    number: int
    job: Job
    tracking: Tracking = field(init=False)
    mailbox: Mailbox = field(init=False)
    total: int = 0
    step: int = 0
    loss: float | None = None
    ended: bool = False
    lost: str = ""
    errors: list[Event] = field(default_factory=list)

    def hear(self) -> None:
        for event in self.mailbox.drain():
            match event["kind"]:
                case "total":
                    self.total = int(event["steps"])
                case "replayed":
                    self.step, self.loss = int(event["step"]), event["loss"]
                case "report":
                    self.step = max(self.step, int(event["step"]))
                    self.loss = event["metrics"].get(OBJECTIVE, self.loss)
                    self.tracking.metrics(event["metrics"], int(event["step"]))
                case "ended":
                    self.ended = True
                case "error":
                    log.error("trial %d:\n%s", self.number, event["trace"])
                    self.errors.append(event)

    @property
    def percent(self) -> int:
        return 100 if self.ended else min(99, 100 * self.step // self.total) if self.total else 0

    def result(self) -> Trial:
        options = self.job.task.options.model_dump()
        if self.ended:
            self.tracking.finish()
            return Trial(self.number, options, "finished", self.loss)
        if why := str(failure(self.errors) or self.lost):
            self.tracking.fail(why)
            return Trial(self.number, options, "failed", self.loss, why)
        self.tracking.status("stopped early: others were better at the same point")
        self.tracking.finish()
        return Trial(self.number, options, "stopped", self.loss)


def _run(trials: list[_Trial], task: Task, stop: Callable[[], bool], show: Callable[[int], None]) -> None:
    for trial in trials:
        trial.job.folder.mkdir(parents=True, exist_ok=True)
        trial.mailbox = Mailbox(trial.job.folder, 1)
    tuning = _Tuning(trials, task)
    tuning.start()
    told = False
    try:
        while tuning.is_alive():
            tuning.join(LOOK_S)
            for trial in trials:
                trial.hear()
            show(sum(trial.percent for trial in trials))
            if not told and stop():
                told = True
                for trial in trials:
                    trial.mailbox.stop()
    except BaseException:
        for trial in trials:
            trial.mailbox.stop()
        raise
    for trial in trials:
        trial.hear()
        trial.lost = tuning.lost.get(trial.number, "")
    if told:
        raise StopTraining("the search was stopped; what its trials saved is kept")
    if tuning.error is not None:
        raise TrainingFailed(f"Ray Tune failed: {' '.join(str(tuning.error).split())[:300]}") from tuning.error


class _Tuning(threading.Thread):
    """Once it ended: its `error`, and the trials whose processes were `lost` too often."""

    def __init__(self, trials: list[_Trial], task: Task) -> None:
        super().__init__(name="ray-tune", daemon=True)
        self.error: BaseException | None = None
        self.lost: dict[int, str] = {}
        self._works = [t.job.work(t.mailbox.attempt, prepare=True) for t in trials]
        self._retries = trials[0].job.where.retries
        self._task = task

    def run(self) -> None:
        import ray
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        asked = resources(self._task.train.scaling)
        there = ray.cluster_resources()
        at_once = min(int(there.get(name, 0.0) // amount) for name, amount in asked.items())
        storage = self._task.work / ".job" / "tune"
        shutil.rmtree(storage, ignore_errors=True)
        works = self._works
        lost = tune.FailureConfig(max_failures=self._retries)
        named = {"cpu": asked.pop("CPU"), "gpu": asked.pop("GPU", 0.0), **asked}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, works=works), named),
            param_space={"number": tune.grid_search(list(range(len(works))))},
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode="min",
                max_concurrent_trials=max(1, min(at_once, len(works))),
                scheduler=ASHAScheduler(
                    time_attr=PERCENT,
                    max_t=100,
                    grace_period=GRACE_PERCENT,
                    reduction_factor=REDUCTION,
                    stop_last_trials=False,
                ),
            ),
            run_config=tune.RunConfig(name="search", storage_path=str(storage), verbose=0, failure_config=lost),
        )
        try:
            for result in tuner.fit():
                if result.error is not None and result.config is not None:
                    self.lost[int(result.config["number"])] = " ".join(str(result.error).split())[:300]
        except BaseException as error:  # noqa: BLE001 - the outermost loop of this thread; the driver looks at it
            self.error = error


def _trial(config: Mapping[str, int], works: list[Work]) -> None:
    """The whole life of a trial."""
    work = works[config["number"]]
    os.nice(max(0, NICENESS - os.nice(0)))
    device = "cuda:0" if work.task.train.scaling.num_gpus else "cpu"
    loop = _TrialLoop(work, device)
    try:
        run_loop(work, loop)
    except Exception:
        log.exception("trial %d failed", config["number"])  # the driver has been told; Tune shall not try it again
        return
    if not loop.channel.stopped:
        loop.channel.tell({"kind": "ended"})


class _TrialChannel(Outbox):
    """Remembers whether the trial was told to stop."""

    stopped = False

    def tell(self, event: Event) -> None:
        self.stopped = self.stopped or event["kind"] == "stopped"
        super().tell(event)


class _TrialLoop(JobLoop):
    """Reports to Tune as well, which ends this process when it gives up on the trial."""

    channel: _TrialChannel

    def __init__(self, work: Work, device: str) -> None:
        channel = _TrialChannel(work.folder, work.attempt, 0)
        super().__init__(Checkpoints(work.folder / CHECKPOINTS, work.digest, 1), channel, Place(device=device))
        self._reports = work.folder / "reports.jsonl"
        self._digest = work.digest
        self._total = 0

    def total(self, steps: int) -> None:
        self._total = steps
        super().total(steps)

    def restore(self) -> Path | None:
        """Tune hears again what it had heard up to the checkpoint."""
        folder = super().restore()
        newest = self._checkpoints.newest()
        step = -1 if newest is None else newest.step
        kept = [r for r in _lines(self._reports) if r["task"] == self._digest and r["step"] <= step]
        with self._reports.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(report) + "\n" for report in kept)
        for report in kept:
            self._tune(report)
        if kept:
            self.channel.tell({"kind": "replayed", "step": kept[-1]["step"], "loss": kept[-1][OBJECTIVE]})
        return folder

    def report(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        super().report(step, metrics, save)
        if OBJECTIVE not in metrics:
            return
        percent = max(1, 100 * step // self._total) if self._total else 1
        report = {"task": self._digest, "step": step, PERCENT: percent, OBJECTIVE: float(metrics[OBJECTIVE])}
        with self._reports.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        self._tune(report)

    def _tune(self, report: Mapping[str, Any]) -> None:
        from ray import tune

        try:
            tune.report({name: report[name] for name in ("step", PERCENT, OBJECTIVE)})
        except SystemExit:  # how Tune ends a trial that it gave up on
            raise StopTraining from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole ones: a killed writer may have left half a line."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _on_one_worker(task: Task) -> Task:
    train = task.train.model_copy(update={"scaling": task.train.scaling.model_copy(update={"workers": 1})})
    return replace(task, spec=task.spec.model_copy(update={"train": {**task.spec.train, task.name: train}}))


def _trial_task(task: Task, number: int, options: BaseModel) -> Task:
    """With a folder of its own: what `prepare` makes may depend on the options."""
    return replace(task, options=options, work=task.work / ".job" / "trials" / f"{number:03d}")
