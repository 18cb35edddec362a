"""The job as a trainer's loop sees it: `PlainLoop` in the caller's process, `RayLoop` in a worker of Ray Train.

Both are one class; they differ in who they are and in how the workers agree. `fit`, `search`, tests and benchmarks make
them; they call `checkpoint` and `channel`. Checkpoints do not go through Ray Train's `report`: that would copy each of
them once more, wait for the controller's next poll, and leave the index of what is there in the memory of an actor. A
folder of complete checkpoints survives `kill -9` of driver, workers and Ray, and a new Ray goes on from it.
"""

from __future__ import annotations

import logging
import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import TrainingError
from training.job.channel import Channel, Direct, Event, Outbox
from training.job.checkpoint import Checkpoints
from training.job.cluster import NICENESS
from training.ports import StopTraining, Task, Trainer

CHECKPOINTS = "checkpoints"
_GO, _STOP, _FAILED = 0, 1, 2

log = logging.getLogger(__name__)


class PeerFailed(TrainingError):
    """Another worker failed, and its own error says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of one worker: `rank` of `world`, and the torch device that is its own."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


class JobLoop:
    """See `training.ports.Loop`. `report` with a world above 1 costs one broadcast of a byte."""

    def __init__(self, checkpoints: Checkpoints, channel: Channel, place: Place = Place()) -> None:
        self.channel = channel
        self._checkpoints = checkpoints
        self._place = place

    @property
    def rank(self) -> int:
        return self._place.rank

    @property
    def world(self) -> int:
        return self._place.world

    @property
    def device(self) -> str:
        return self._place.device

    def total(self, steps: int) -> None:
        if self.rank == 0:
            self.channel.tell({"kind": "total", "steps": steps})

    def restore(self) -> Path | None:
        """Rank 0 chooses, so that all workers go on from the same one."""
        found = self._checkpoints.newest() if self.rank == 0 else None
        step = self._agree(-1 if found is None else found.step)
        if step < 0:
            return None
        if self.rank == 0:
            self.channel.tell({"kind": "restored", "step": step})
        return self._checkpoints.at(step).folder

    def report(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        """Raises StopTraining, what `save` raised, or PeerFailed where it raised on rank 0."""
        order = _GO
        if self.rank == 0:
            try:
                if save is not None:
                    self._checkpoints.save(step, save)
                values = {name: float(value) for name, value in metrics.items()}
                self.channel.tell({"kind": "report", "step": step, "metrics": values, "saved": save is not None})
            except BaseException:
                self._agree(_FAILED)  # or the others would wait for us
                raise
            order = _STOP if self.channel.told_to_stop() else _GO
        order = self._agree(order)
        if order == _FAILED:
            raise PeerFailed("the first worker could not save its checkpoint")
        if order == _STOP:
            raise StopTraining(f"stopped at step {step}")

    def _agree(self, value: int) -> int:
        """Rank 0's value, in all workers. A barrier."""
        if self.world == 1:
            return value
        import torch
        from torch import distributed

        shared = torch.tensor([value], dtype=torch.int64)
        distributed.broadcast(shared, src=0)
        return int(shared.item())


class PlainLoop(JobLoop):
    """One worker, in this process, without Ray. `folder` holds the checkpoints of the task `digest`; `on` hears every
    event, `stop` is asked at every report."""

    def __init__(
        self,
        folder: Path,
        *,
        digest: str = "",
        device: str = "cpu",
        on: Callable[[Event], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(Checkpoints(folder, digest, 1), Direct(on, stop), Place(device=device))


class RayLoop(JobLoop):
    """A worker of Ray Train; made inside it. `folder` is the job's."""

    def __init__(self, folder: Path, digest: str, attempt: str) -> None:
        from ray.train import get_context
        from ray.train.torch import get_device

        context = get_context()
        place = Place(context.get_world_rank(), context.get_world_size(), str(get_device()))
        channel = Outbox(folder, attempt, place.rank)
        super().__init__(Checkpoints(folder / CHECKPOINTS, digest, place.world), channel, place)


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs: it is pickled to it."""

    trainer: Trainer
    task: Task
    folder: Path
    digest: str
    attempt: str
    prepare: bool = False
    """Whether the worker does that as well, being the only one."""


def ray_worker(work: Work) -> None:
    """The whole life of a worker of Ray Train."""
    os.nice(max(0, NICENESS - os.nice(0)))
    loop = RayLoop(work.folder, work.digest, work.attempt)
    run_loop(work, loop)


def run_loop(work: Work, loop: JobLoop) -> None:
    """The trainer's loop with the job's threads and seed. An end by StopTraining is told, not raised; an error is told,
    with its trace, and raised."""
    try:
        with _computing(work.task):
            if work.prepare:
                work.trainer.prepare(work.task)
            work.trainer.loop(work.task, loop)
    except StopTraining:
        loop.channel.tell({"kind": "stopped"})
    except BaseException as error:
        loop.channel.tell(
            {
                "kind": "error",
                "rank": loop.rank,
                "type": type(error).__name__,
                "text": " ".join(str(error).split()),
                "trace": traceback.format_exc(),
                "collateral": is_collateral(error),
            }
        )
        raise


def is_collateral(error: BaseException) -> bool:
    """Whether it only says that another worker is gone."""
    if isinstance(error, PeerFailed):
        return True
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error).lower() for sign in ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    )


@contextmanager
def _computing(task: Task) -> Iterator[None]:
    """As many threads as the worker has CPUs, and every generator seeded. How sums are split among threads changes
    their last bits: with and without Ray it has to be the same number."""
    import numpy as np
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(task.train.scaling.num_cpus)))
    random.seed(task.seed)
    np.random.seed(task.seed % 2**32)  # libraries that trainers call draw from this one
    torch.manual_seed(task.seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
