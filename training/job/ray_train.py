"""The loop in the workers of Ray Train, started again when workers are lost. Called by `fit`.

Ray Train would restart its workers after any error. We start them again ourselves, and only after a loss: what the
trainer raises, it would raise again. Ray Train therefore gets no retries of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial

from training.errors import TrainingFailed
from training.job.channel import Mailbox
from training.job.cluster import check_fits, ray_cluster, refused, resources
from training.job.follow import Follower, failure
from training.job.loop import ray_worker
from training.job.work import Job

LOOK_S = 0.1
"""How often the driver reads what its workers tell, and asks whether to stop."""

log = logging.getLogger(__name__)


def run_on_ray(job: Job, follower: Follower, stop: Callable[[], bool]) -> None:
    """Until the loop ended or was told to stop. Raises TrainingRefused, TrainingFailed, or what the loop raised where
    it is one of our errors."""
    scaling = job.task.train.scaling
    with ray_cluster(job.where):
        check_fits(job.where, scaling, job.world)
        until_done(
            lambda: _attempt(job, follower, stop),
            lambda: _newest_step(job),
            job.where.retries,
            f"training {job.task.name}",
        )


def until_done(attempt: Callable[[], str | None], newest_step: Callable[[], int], retries: int, name: str) -> None:
    """`attempt` again as long as it says why workers were lost, `retries` times in a row without a newer checkpoint.
    Raises TrainingFailed."""
    losses, reached = 0, newest_step()
    while (lost := attempt()) is not None:
        step = newest_step()
        losses = 1 if step > reached else losses + 1
        reached = step
        if losses > retries:
            raise TrainingFailed(f"{name} lost workers {losses} times in a row without a new checkpoint: {lost}")
        log.warning("%s: %s; starting again after step %d", name, lost, max(reached, 0))


def _attempt(job: Job, follower: Follower, stop: Callable[[], bool]) -> str | None:
    """None: the loop came to an end. A sentence: why workers were lost."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, TrainingFailedError

    mailbox = Mailbox(job.folder, job.world)
    follower.begin()
    fitting = _Fitting(job, mailbox.attempt)
    fitting.start()
    told = False
    try:
        while fitting.is_alive():
            fitting.join(LOOK_S)
            for event in mailbox.drain():
                follower(event)
            if not told and stop():
                mailbox.stop()
                told = True
    except BaseException:
        mailbox.stop()
        raise
    for event in mailbox.drain():
        follower(event)
    error = fitting.error
    if error is None:
        return None
    if (own := failure(follower.errors)) is not None:
        raise own from error
    if isinstance(error, ControllerError):
        log.error("Ray Train: %s", error)
        kind = type(error.controller_failure).__name__
        if kind in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"):
            raise refused(job.where, job.task.train.scaling, job.world) from error
        return f"they could not be started ({_one_line(error.controller_failure)})"
    if isinstance(error, TrainingFailedError | RayActorError):
        return _why_lost(error)
    raise TrainingFailed(f"Ray ended the training: {type(error).__name__}: {_one_line(error)}") from error


class _Fitting(threading.Thread):
    """`TrainingFailedError` or None in `error` once it ended. In a thread of its own, since the driver has to listen
    meanwhile, and since Ray Train takes SIGINT over where it runs in the main one."""

    def __init__(self, job: Job, attempt: str) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.error: BaseException | None = None
        self._job = job
        self._attempt = attempt

    def run(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        job = self._job
        scaling = job.task.train.scaling
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.where.wait_s)  # Ray Train reads it in `fit`
        storage = job.folder / "ray"
        shutil.rmtree(storage, ignore_errors=True)
        trainer = TorchTrainer(
            partial(ray_worker, job.work(self._attempt)),
            # With GPUs gloo is there as well: workers agree on what lies in ordinary memory.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.num_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=scaling.workers,
                use_gpu=scaling.num_gpus > 0,
                resources_per_worker=resources(scaling),
            ),
            run_config=RunConfig(
                name=self._attempt,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - the outermost loop of this thread; the driver looks at it
            self.error = error


def _why_lost(error: BaseException) -> str:
    failures = [str(f) for f in getattr(error, "worker_failures", {}).values()] or [str(error)]
    text = " ".join(failures)
    if "OutOfMemoryError" in text or "running low on memory" in text:  # the words OOM and memory are in every death
        return (
            "a worker was killed as the machine ran out of memory: lower the batch size, or have fewer workers a node"
        )
    return f"a worker died ({_one_line(failures[0])}); killed without a word is most often out of memory"


def _newest_step(job: Job) -> int:
    newest = job.checkpoints.newest()
    return -1 if newest is None else newest.step


def _one_line(error: object, limit: int = 200) -> str:
    return " ".join(str(error).split())[:limit]
