"""A training as its folder has it: which task it is, how far it came. Called by `fit` and `search`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from registry.content import digest_folder, digest_json
from registry.files import replace_file
from training.dataset.example import load_info
from training.errors import DatasetInvalid
from training.job.checkpoint import Checkpoints
from training.job.cluster import Where
from training.job.loop import CHECKPOINTS, Work
from training.ports import Task, Trainer


@dataclass(frozen=True)
class Job:
    """One task with its trainer, its folder and the place where it runs."""

    trainer: Trainer
    task: Task
    where: Where

    @property
    def folder(self) -> Path:
        return self.task.work / ".job"

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def world(self) -> int:
        return self.task.train.scaling.workers

    @cached_property
    def digest(self) -> str:
        return task_digest(self.trainer, self.task)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.checkpoint_folder, self.digest, self.world)

    def work(self, attempt: str, *, prepare: bool = False) -> Work:
        """For a worker of this attempt."""
        return Work(self.trainer, self.task, self.folder, self.digest, attempt, prepare)

    def done(self) -> bool:
        """Whether the loop of this very task came to its end before."""
        try:
            done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        newest = self.checkpoints.newest() if done.get("task") == self.digest else None
        return newest is not None and done == self._state(newest.step)

    def set_done(self) -> None:
        if newest := self.checkpoints.newest():
            replace_file(self.folder / "done.json", json.dumps(self._state(newest.step)))

    def _state(self, step: int) -> dict[str, str | int]:
        return {"task": self.digest, "world": self.world, "step": step}


def task_digest(trainer: Trainer, task: Task) -> str:
    """SHA-256 hex of everything that the loop's result depends on, but the number of workers."""
    train = task.train
    return digest_json(
        {
            "trainer": [trainer.name, train.trainer, train.component, train.start],
            "spec": task.spec.model_dump(mode="json", exclude={"train", "rollout", "placement", "evaluation"}),
            "options": task.options.model_dump(mode="json"),
            "seed": task.seed,
            "threads": max(1, int(train.scaling.num_cpus)),
            "dataset": _dataset_digest(task.dataset),
            "items": _digest(task.items),
            "start": "" if task.start is None else _digest(task.start),
        }
    )


def _dataset_digest(folder: Path) -> str:
    try:
        return load_info(folder).fingerprint
    except DatasetInvalid:  # a folder that no one but the trainer understands
        return _digest(folder)


def _digest(path: Path) -> str:
    """ "" for what is not there."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        return digest_folder(path)[0]
    except ValueError:
        return ""
