"""Train one model: prepare, the loop in its workers, finish. Resumes by itself what was killed.

Called by `training.run`; calls the trainer, Ray Train (or the loop in this process), the checkpoints and the tracking.
The same task, seed and number of workers give the same result, undisturbed or killed in between, with and without Ray.

Ray Train restarts workers after any error. We start them again ourselves, and only after a lost worker: an error that
the trainer raises would be raised again. An attempt that got no further than the one before counts as a retry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from training.errors import TrainingFailed, TrainingRefused
from training.job.cluster import Where
from training.job.follow import Follower, failure
from training.job.loop import PlainLoop, run_loop
from training.job.ray_train import run_on_ray
from training.job.work import Job
from training.ports import StopTraining, Task, Trained, Trainer
from training.progress import Progress
from training.tracking import Tracking


def fit(
    trainer: Trainer,
    task: Task,
    *,
    where: Where,
    progress: Progress,
    tracking: Tracking,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Raises StopTraining when `stop` says so (what was saved is kept, and the same call goes on from it),
    TrainingRefused when the cluster or the disk has no room, TrainingFailed when the loop raised or its workers were
    lost too often. What `stop` raises ends the workers, too, and is raised."""
    job = Job(trainer, resolved(task), where)
    with progress.step(f"{task.name}: prepare", None):
        trainer.prepare(job.task)
    if not job.done():
        with Follower(task.name, progress, tracking) as follower:
            if where.plain:
                _run_here(job, follower, stop)
            else:
                run_on_ray(job, follower, stop)
        if follower.stopped:
            raise StopTraining(f"training {task.name} was stopped; its last checkpoint is kept")
        job.set_done()
    saved = job.checkpoints.newest()
    if saved is None:
        raise TrainingFailed(f"the loop of {trainer.name} ended without having saved anything: nothing was trained")
    with progress.step(f"{task.name}: finish", None):
        return trainer.finish(job.task, saved.folder)


def _run_here(job: Job, follower: Follower, stop: Callable[[], bool]) -> None:
    scaling = job.task.train.scaling
    if scaling.workers > 1:
        raise TrainingRefused(f"without Ray there is one worker, and `scaling.workers` is {scaling.workers}")
    device = "cuda:0" if scaling.num_gpus else "cpu"
    loop = PlainLoop(job.checkpoint_folder, digest=job.digest, device=device, on=follower, stop=stop)
    try:
        run_loop(job.work(""), loop)
    except Exception as error:
        if (known := failure(follower.errors)) is not None:
            raise known from error
        raise


def resolved(task: Task) -> Task:
    """With absolute paths: workers have other working directories."""
    return replace(
        task,
        app_folder=task.app_folder.absolute(),
        dataset=task.dataset.absolute(),
        items=task.items.absolute(),
        start=None if task.start is None else task.start.absolute(),
        work=task.work.absolute(),
    )
