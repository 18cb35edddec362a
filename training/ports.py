"""What a trainer is, and what a training loop sees of the job that runs it.

`training.trainers` names the trainers, `training.run` drives them: `prepare` in the job's driver, `loop` in each worker
of Ray Train (or, without Ray, in the driver itself), `finish` in the driver again. A trainer therefore knows nothing of
Ray, MLflow or the stores; what a loop tells and keeps goes through its `Loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import BaseModel

from registry.schema import Role
from serving.schema import AppSpec, TrainSpec

if TYPE_CHECKING:
    from training.evidence import Evidence


OBJECTIVE = "objective"
"""The metric by which a search judges a trial, the lower the better: every loop reports it with its validation. It has
to mean the same whatever options are drawn."""


@dataclass(frozen=True, slots=True)
class Task:
    """One training, as plain paths and values: it is pickled to the workers.

    `dataset` is the folder `training.dataset.example` describes, `items` the catalogue as JSON lines `{"id", "fields",
    "attributes"}` in id order. `start` is the component's folder in the stable release where `train.start` is `stable`
    and there is one, else None: begin with the model that app.yaml names. `work` is the trainer's own folder; it
    survives a killed job and is there again when the job is resumed. `options` are `train.options` as the trainer's
    model validated them. `home` is the platform's, where the model `tiny` lies.
    """

    spec: AppSpec
    name: str
    app_folder: Path
    dataset: Path
    items: Path
    start: Path | None
    work: Path
    options: BaseModel
    seed: int = 0
    home: Path | None = None

    @property
    def train(self) -> TrainSpec:
        return self.spec.train[self.name]


@dataclass(frozen=True, slots=True)
class NewComponent:
    """A component as it lies built in `folder`; see `registry.schema.ComponentRef`. `needs` are component names."""

    name: str
    role: Role
    folder: Path
    fingerprint: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out. `models`: embedder name in app.yaml -> the sentence-transformers folder that takes its place (it
    is exported, and every index on it rebuilt). `components` enter the release as they are. `metrics` are the
    trainer's own figures of the validation part."""

    models: Mapping[str, Path] = field(default_factory=dict)
    components: tuple[NewComponent, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class Loop(Protocol):
    """The job, as one worker's loop sees it."""

    @property
    def rank(self) -> int:
        """Of this worker, from 0."""

    @property
    def world(self) -> int:
        """How many workers there are. Above 1, torch.distributed is initialised."""

    @property
    def device(self) -> str:
        """ "cpu", or "cuda:N"."""

    def restore(self) -> Path | None:
        """The folder that the newest complete `save` wrote, also one of a run that was killed; None for a fresh run."""

    def report(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        """After `step` optimiser steps. With `save`, called on rank 0 with an empty folder, the loop can go on from
        here after a kill. Every worker calls it at the same steps: it is a barrier. Raises StopTraining when the job
        is told to stop (a search that gives up on this trial, or a person)."""

    def total(self, steps: int) -> None:
        """How many steps there will be, for the progress bar."""


class StopTraining(Exception):
    """The loop ends here; what it saved last is kept."""


class Trainer(Protocol):
    """One way to make a component better. Stateless; `name` is the one in app.yaml."""

    name: str
    options: type[BaseModel]

    def component(self, spec: AppSpec) -> str:
        """The component it replaces where app.yaml names none. Raises TrainingRefused when there is none or no only
        one."""

    def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:
        """Option -> (low, high), drawn log-uniformly where both are floats above 0, or the choices of a longer
        tuple: what `palate train --tune` varies."""

    def prepare(self, task: Task) -> None:
        """Once, before the loop: whatever all workers need, into `task.work`. Done again after a kill."""

    def loop(self, task: Task, loop: Loop) -> None:
        """In every worker. Deterministic for one task, seed and world size. What is to be kept is saved through
        `loop.report`."""

    def finish(self, task: Task, saved: Path) -> Trained:
        """Make the model of what the loop saved last."""


@runtime_checkable
class ShowsEvidence(Protocol):
    """A trainer whose component can be judged by itself, where `gates.feedback` asks for what no pipeline's answers
    show: auc, log_loss, calibration_error, perplexity."""

    def evidence(self, task: Task, component: Path | None) -> Evidence | None:
        """What the component in this folder says of the test part of `task.dataset`; None for the folder: what app.yaml
        names instead. None returned: there is nothing that could be measured."""
