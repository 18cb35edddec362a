"""What a training run is asked to do (`Order`), what it works with (`Means`), and what came of it (`Result`).

`training.commands` makes the first two, with `training.wiring`; tests make `Means` with trainers of their own. Pure but
for `write_items`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from registry.content import digest_json
from registry.ports import Journal, ReleaseStore
from registry.schema import ReleaseVersion
from serving.ports import ItemStore
from serving.schema import AppSpec, Item
from training.config import TrainingConfig
from training.dataset.example import DatasetInfo
from training.errors import TrainingRefused
from training.index import BuiltRelease
from training.interactions import Interactions
from training.ports import Task, Trained, Trainer
from training.progress import Progress
from training.publish import Judged, Published
from training.runs import Run, Runs, Status
from training.tracking import Tracking
from training.trainers import FindTrainer


@dataclass(frozen=True, slots=True)
class Order:
    """What to train: the app as `spec` describes it, with what the command line says. `only`: names in `train:`."""

    app_folder: Path
    spec: AppSpec
    only: tuple[str, ...] = ()
    seed: int | None = None
    workers: int | None = None
    tune: int = 0
    publish: bool = True
    fresh: bool = False
    why: str = "by hand"
    who: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of app.yaml. Raises TrainingRefused."""
        if not self.spec.train:
            raise TrainingRefused(f"app.yaml of {self.spec.name} has no section `train`: it says what learns from what")
        if unknown := sorted(set(self.only) - set(self.spec.train)):
            raise TrainingRefused(f"train has no {unknown[0]!r} to train; it has {list(self.spec.train)}")
        return tuple(name for name in self.spec.train if not self.only or name in self.only)

    @property
    def request(self) -> dict[str, Any]:
        """What makes two runs the same: the second goes on where the first was killed."""
        return {
            "spec": digest_json(self.spec.model_dump(mode="json")),
            "trainings": list(self.names),
            "seed": self.seed,
            "workers": self.workers,
            "tune": self.tune,
            "publish": self.publish,
        }

    def job_spec(self) -> AppSpec:
        """The spec as trainers see it; the release keeps the one of app.yaml."""
        trains = dict(self.spec.train)
        for name, train in trains.items():
            workers = self.workers or train.scaling.workers
            seed = train.seed if self.seed is None else self.seed
            scaling = train.scaling.model_copy(update={"workers": workers})
            trains[name] = train.model_copy(update={"scaling": scaling, "seed": seed})
        return self.spec.model_copy(update={"train": trains})


@dataclass(frozen=True, slots=True)
class DatasetOrder:
    """`folder` is empty; `stable` is what negatives are mined with, `items` the catalogue's snapshot. `now_s`: when the
    run began, Unix time."""

    spec: AppSpec
    name: str
    app_folder: Path
    folder: Path
    items: Path
    stable: ReleaseVersion
    now_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """`tasks`: name in `train:` -> what was trained, and the name of the component that it replaces."""

    spec: AppSpec
    app_folder: Path
    candidate: BuiltRelease
    stable: ReleaseVersion
    tasks: Mapping[str, tuple[Task, str]]


@dataclass(frozen=True, slots=True)
class Means:
    """What a run works with; `training.wiring` has the real ones. `tune` returns the task with the options that won,
    `interactions` what the app's users did, `forgotten` the pseudonyms of an app that may be in nothing any more."""

    config: TrainingConfig
    releases: ReleaseStore
    items: ItemStore
    runs: Runs
    journal: Journal
    progress: Progress
    find_trainer: FindTrainer
    dataset: Callable[[DatasetOrder, Progress], DatasetInfo]
    fit: Callable[[Trainer, Task, Progress, Tracking, Callable[[], bool]], Trained]
    tune: Callable[[Trainer, Task, int, Progress, Tracking, Callable[[], bool]], Task]
    judge: Callable[[Comparison, Progress], Judged]
    track: Callable[[Run, Path], Tracking]
    interactions: Callable[[AppSpec, Path], Interactions]
    forgotten: Callable[[str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run. `published` is None where nothing was registered; `folder` is what is left of the run."""

    run: Run
    status: Status
    why: str
    datasets: Mapping[str, DatasetInfo]
    judged: Judged | None = None
    published: Published | None = None
    folder: Path | None = None


class SnapshotItems:
    """The catalogue as it was when the run began: JSON lines in id order."""

    def __init__(self, file: Path, count: int, sequence: int) -> None:
        self._file = file
        self._count = count
        self._sequence = sequence

    def scan(self, _app: str) -> Iterator[Item]:
        with self._file.open("rb") as lines:
            for line in lines:
                yield Item(**orjson.loads(line))

    def count(self, _app: str) -> int:
        return self._count

    def sequence(self, _app: str) -> int:
        return self._sequence


def write_items(file: Path, items: ItemStore, app: str) -> dict[str, int]:
    """(sequence, count) of what was written."""
    sequence, count = items.sequence(app), 0
    with file.open("wb") as out:
        for item in items.scan(app):
            line = {"id": item.id, "fields": dict(item.fields), "attributes": dict(item.attributes)}
            out.write(orjson.dumps(line, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
            count += 1
    return {"sequence": sequence, "count": count}
