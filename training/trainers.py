"""The trainers by the name that app.yaml gives them. Each is imported when it is asked for: most bring torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from pydantic import BaseModel, ValidationError

from serving.schema import AppSpec, TrainSpec
from training.errors import TrainingRefused
from training.ports import Trainer

MODULES: Mapping[str, str] = {
    "contrastive": "training.contrastive.trainer",
    "lora": "training.lora.trainer",
    "wide_deep": "training.wide_deep.trainer",
    "taste2vec": "training.taste2vec.trainer",
}


class FindTrainer(Protocol):
    """What a run is given to find its trainers with: `find_trainer`, or a test's own."""

    def __call__(self, name: str) -> Trainer: ...


def find_trainer(name: str) -> Trainer:
    """Raises TrainingRefused for one that this installation does not have."""
    module = MODULES.get(name)
    if module is None:
        raise TrainingRefused(f"there is no trainer {name!r}; there are {sorted(MODULES)}")
    try:
        return cast(Trainer, import_module(module).TRAINER)
    except ModuleNotFoundError as error:
        what = "is not part of this version" if module.startswith(f"{error.name}") else f"needs {error.name!r}"
        raise TrainingRefused(
            f"the trainer {name!r} {what}: install Palate with its extra `train`, or name another of {sorted(MODULES)}"
        ) from None


def checked_options(name: str, train: TrainSpec, trainer: Trainer) -> BaseModel:
    """`train.NAME.options` as the trainer's model has them. Raises TrainingRefused that names the option."""
    try:
        return trainer.options.model_validate(train.options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TrainingRefused(f"train.{name}.options.{key or '*'}: {first['msg']}") from None


def component_of(name: str, spec: AppSpec, trainer: Trainer) -> str:
    """The component that training `name` of the app replaces. Raises TrainingRefused."""
    return spec.train[name].component or trainer.component(spec)


def learns_conversations(trainer: Trainer) -> bool:
    """Whether it is taught answers, not items: such a trainer says so with `conversations = True`."""
    return bool(getattr(trainer, "conversations", False))


def knows_users(trainer: Trainer) -> bool:
    """Whether each person's own choice counts: a trainer that learns about users says so with `per_user = True`."""
    return bool(getattr(trainer, "per_user", False))
