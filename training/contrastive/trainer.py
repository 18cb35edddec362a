"""The trainer `contrastive`: a text embedder learns which item a query means. `training.run` drives it.

torch and sentence-transformers are imported by the methods that compute: app.yaml is checked without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from serving.components.embedder import TORCH_FOLDER
from serving.schema import AppSpec, SourceSpec
from training.contrastive.options import ContrastiveOptions, VocabularyOptions
from training.contrastive.pairs import Pair, PairSet, read_items, read_pairs
from training.errors import TrainingRefused
from training.models import MINILM, model_folder
from training.ports import Loop, Task, Trained

if TYPE_CHECKING:
    from training.contrastive.encoder import Encoder

PREFIX = "embedder."
TEACHER_FILE = "teacher.npy"
MODEL_FOLDER = "model"
EXTENDED_FOLDER = "extended"


class ContrastiveTrainer:
    """Implements `Trainer`."""

    name = "contrastive"
    options: type[BaseModel] = ContrastiveOptions

    def component(self, spec: AppSpec) -> str:
        names = sorted({source.embedder for source in _dense(spec)})
        if len(names) != 1:
            found = f"it has {names}: name one of them with `component: embedder.NAME`" if names else "it has none"
            raise TrainingRefused(f"train: `contrastive` trains the embedder of a dense source, and {found}")
        return PREFIX + names[0]

    def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:
        space: dict[str, tuple[float, float] | tuple[Any, ...]] = {"learning_rate": (1e-5, 1e-3)}
        assert isinstance(options, ContrastiveOptions)
        if options.method == "distill":
            return space | {"keep_weight": (0.1, 10.0)}
        return space | {"scale": (10.0, 50.0), "batch_size": (16, 32, 64)}

    def prepare(self, task: Task) -> None:
        """Raises TrainingRefused where there is nothing to train on, or no model to begin with."""
        options, train = _options(task), _pairs(task, "train")
        if len(train.pairs) < 2:
            raise TrainingRefused(
                f"the data set has {len(train.pairs)} pairs of a query and an item to train on ({train.missing} name "
                "items that are gone or have no text); a contrast needs two: lower `data.unseen_items_ratio`, add "
                "`data.extra`, or collect more feedback"
            )
        folder = _start(task)
        task.work.mkdir(parents=True, exist_ok=True)
        if options.vocabulary:
            self._extend(task, folder, train.pairs, options.vocabulary)
        if options.method == "distill":
            encoder = self._encoder(task, folder, "cpu")
            vectors = encoder.encode(_taught(task), encoder.document_prompt)
            partial = task.work / "teacher.partial.npy"
            np.save(partial, vectors)
            partial.replace(task.work / TEACHER_FILE)

    def loop(self, task: Task, loop: Loop) -> None:
        import torch

        from training.contrastive.loop import Material, Worker
        from training.contrastive.validation import Validation

        torch.manual_seed(task.seed)
        options = _options(task)
        texts = list(_texts(task).values())
        validation = Validation(_pairs(task, "validation").pairs, texts, options, task.seed)
        material = Material(_pairs(task, "train").pairs, validation, _teacher(task, options), task.seed)
        Worker(self._encoder(task, _first(task), loop.device), material, options, loop).train()

    def finish(self, task: Task, saved: Path) -> Trained:
        import torch

        from training.contrastive.loop import chosen, load_state

        torch.manual_seed(task.seed)
        encoder = self._encoder(task, _first(task), "cpu")
        weights, metrics = chosen(load_state(saved))
        encoder.restore(weights)
        encoder.save(task.work / MODEL_FOLDER)
        return Trained(models={_embedder(task): task.work / MODEL_FOLDER}, metrics=metrics)

    def _extend(self, task: Task, folder: Path, pairs: list[Pair], options: VocabularyOptions) -> None:
        """Makes the model that the training begins with; one that is there was made by a run that was killed."""
        from training.contrastive.vocabulary import extend

        if (made := task.work / EXTENDED_FOLDER).is_dir():
            return
        partial = task.work / f"{EXTENDED_FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        extend(folder, pairs, options, task.seed, partial)
        partial.replace(made)

    def _encoder(self, task: Task, folder: Path, device: str) -> Encoder:
        from training.contrastive.encoder import Encoder

        return Encoder(folder, _options(task), device, _source(task).max_tokens)


def _options(task: Task) -> ContrastiveOptions:
    assert isinstance(task.options, ContrastiveOptions)
    return task.options


def _dense(spec: AppSpec) -> list[SourceSpec]:
    """Sources whose embedder reads text alone."""
    return [source for source in spec.retrieve.sources.values() if source.engine == "dense" and not source.record]


def _embedder(task: Task) -> str:
    """The name of what is trained, as app.yaml writes it in a source."""
    return (task.train.component or TRAINER.component(task.spec)).removeprefix(PREFIX)


def _source(task: Task) -> SourceSpec:
    """The source whose texts are trained on: the first that uses the embedder."""
    name = _embedder(task)
    for source in _dense(task.spec):
        if source.embedder == name:
            return source
    raise TrainingRefused(
        f"train.{task.name}.component is {task.train.component!r}, but no dense source has that embedder; there are "
        f"{sorted({PREFIX + source.embedder for source in _dense(task.spec)})}"
    )


def _start(task: Task) -> Path:
    """The sentence-transformers folder to begin with."""
    if task.start is not None:
        folder = task.start / TORCH_FOLDER
        if not folder.is_dir():
            raise TrainingRefused(
                f"train.{task.name}.start is `stable`, but the embedder of the stable release was published without "
                "its torch weights: begin with `start: base`, or publish one that has them (any trained release has)"
            )
        return folder
    name = _embedder(task)
    return model_folder(name if name == MINILM else task.app_folder / name)


def _first(task: Task) -> Path:
    """The folder that the first step begins with: `_start`, with the new words where there are such."""
    return task.work / EXTENDED_FOLDER if _options(task).vocabulary else _start(task)


def _texts(task: Task) -> dict[str, str]:
    return read_items(task.items, tuple(task.spec.text_weights(_source(task))))


def _pairs(task: Task, part: str) -> PairSet:
    return read_pairs(task.dataset / f"{part}.jsonl", _texts(task))


def _taught(task: Task) -> list[str]:
    """The item texts that a teacher embeds: those of both parts, each once."""
    parts = [pair.text for part in ("train", "validation") for pair in _pairs(task, part).pairs]
    return sorted(set(parts))


def _teacher(task: Task, options: ContrastiveOptions) -> dict[str, NDArray[np.float32]]:
    if options.method != "distill":
        return {}
    vectors = np.load(task.work / TEACHER_FILE)
    return dict(zip(_taught(task), vectors, strict=True))


TRAINER = ContrastiveTrainer()
