"""`TRAINER`: Taste2Vec as `training.trainers` names it; driven by `training.run`, in batch and, with `start: stable`,
online (see `online`)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from serving import build
from serving.components.taste import TEXT_FOLDER, TasteInfo, TasteReader
from serving.config import ServingConfig
from serving.schema import AppSpec, SourceSpec
from training.dataset.example import read_examples
from training.errors import TrainingRefused
from training.models import is_taste_model
from training.ports import Loop, Task, Trained
from training.taste2vec.component import check_fits, export_taste, load_encoder, write_component
from training.taste2vec.learn import Learner
from training.taste2vec.material import item_inputs, load, prepare, read_items
from training.taste2vec.online import first_lesson, next_lesson
from training.taste2vec.options import Taste2VecOptions

MATERIAL = "material.npz"
LESSON = "lesson.json"
REPLAY = "replay.jsonl"
BASE = "base"
STATE = "state.pt"
COMPONENT = "embedder."


class Taste2VecTrainer:
    """Satisfies `training.ports.Trainer`."""

    name = "taste2vec"
    options = Taste2VecOptions

    def component(self, spec: AppSpec) -> str:
        names = sorted({s.embedder for s in spec.retrieve.sources.values() if s.engine == "dense" and s.record})
        if len(names) != 1:
            raise TrainingRefused(
                f"taste2vec trains the embedder of the dense source with `record: true`, but this app has {names}: "
                "name it in train.NAME.component"
            )
        return COMPONENT + names[0]

    def search_space(self, options: Taste2VecOptions) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:  # noqa: ARG002
        return {
            "learning_rate": (3e-4, 1e-2),
            "temperature": (0.03, 0.3),
            "push": (0.1, 2.0),
            "same_taste": (0.0, 0.05, 0.1, 0.2),
        }

    def prepare(self, task: Task) -> None:
        name, source = _source(task)
        items = item_inputs(read_items(task.items), task.spec, source)
        if not items:
            raise TrainingRefused("the catalogue is empty: load its items first")
        start = task.start
        if start is None:
            start = task.work / BASE
            model = task.app_folder / name
            if not is_taste_model(model):
                raise TrainingRefused(
                    f"{name!r} is no folder with an encoder.yaml beside app.yaml: taste2vec needs one"
                )
            shutil.rmtree(start, ignore_errors=True)
            export_taste(model, start, task.spec, list(items.values()))
        elif not is_taste_model(start):
            raise TrainingRefused(f"{name!r} of the stable release reads no records: train it with `start: base`")
        info = TasteInfo.load(start)
        check_fits(info, task.spec)
        options, examples = _options(task), list(read_examples(task.dataset / "train.jsonl"))
        if task.start is not None and info.learned_until_s > 0:
            buffer = task.work / REPLAY
            lesson = next_lesson(examples, info.learned_until_s, buffer, options.replay_size, task.seed)
        else:
            lesson = first_lesson(examples)
        validation = list(read_examples(task.dataset / "validation.jsonl"))
        sentences = build.document_embedder(start / TEXT_FOLDER, source, ServingConfig())
        reader = TasteReader(info, sentences.embed)
        prepare(task.work / MATERIAL, reader, lesson, validation, items)
        about = {"until_s": lesson.until_s, "update": lesson.update}
        (task.work / LESSON).write_text(json.dumps(about), encoding="utf-8")

    def loop(self, task: Task, loop: Loop) -> None:
        learner = _learner(task, loop.rank, loop.world, loop.device)
        if (saved := loop.restore()) is not None:
            learner.restore(torch.load(saved / STATE, map_location=loop.device, weights_only=True))
        loop.total(learner.epochs * learner.steps)
        while learner.epoch < learner.epochs:
            metrics = learner.one_epoch()
            loop.report(learner.epoch * learner.steps, metrics, lambda into: torch.save(learner.state(), into / STATE))
        if learner.epochs == 0:
            loop.report(0, learner.validate(), lambda into: torch.save(learner.state(), into / STATE))

    def finish(self, task: Task, saved: Path) -> Trained:
        name, _ = _source(task)
        start = task.start or task.work / BASE
        about = json.loads((task.work / LESSON).read_text(encoding="utf-8"))
        state = torch.load(saved / STATE, map_location="cpu", weights_only=True)
        info = dataclasses.replace(TasteInfo.load(start), learned_until_s=about["until_s"])
        encoder = load_encoder(start, info)
        encoder.load_state_dict(state["best"])
        folder = task.work / "trained"
        shutil.rmtree(folder, ignore_errors=True)
        write_component(encoder, info, start / TEXT_FOLDER, folder)
        return Trained({name: folder}, metrics=state["best_metrics"])


def _options(task: Task) -> Taste2VecOptions:
    return cast("Taste2VecOptions", task.options)


def _source(task: Task) -> tuple[str, SourceSpec]:
    """Embedder name and a source that asks it. Raises TrainingRefused."""
    wanted = (task.train.component or TRAINER.component(task.spec)).removeprefix(COMPONENT)
    for source in task.spec.retrieve.sources.values():
        if source.engine == "dense" and source.record and source.embedder == wanted:
            return wanted, source
    raise TrainingRefused(f"train.{task.name}.component: no dense source with `record: true` asks {wanted!r}")


def _learner(task: Task, rank: int, world: int, device: str) -> Learner:
    start = task.start or task.work / BASE
    encoder = load_encoder(start, TasteInfo.load(start))
    about = json.loads((task.work / LESSON).read_text(encoding="utf-8"))
    learner = Learner(encoder, load(task.work / MATERIAL), _options(task), update=about["update"], seed=task.seed)
    learner.place(rank, world, device)
    if not about["update"]:
        learner.standardise()
    return learner


TRAINER = Taste2VecTrainer()
