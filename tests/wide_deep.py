"""A small wide_deep training: a made-up catalogue, users with tastes, and the steps of a job without one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from serving.components.ranker import OnnxRanker
from serving.schema import AppSpec, Item
from training.dataset.example import Example, write_examples
from training.job.loop import PlainLoop
from training.ports import Task, Trained
from training.trainers import checked_options
from training.wide_deep.trainer import TRAINER

SMALL: dict[str, Any] = {
    "embeddings": {"user": 4, "item": 4, "item.category": 4},
    "crosses": [["user"], ["item"], ["user", "item.category"]],
    "wide_buckets": 4096,
    "hidden": [8],
    "dropout": 0.0,
    "batch_size": 100,
    "epochs": 4,
    "patience": 100,
    "learning_rate": 0.01,
}
ITEMS = [
    Item(f"i{n:02}", {"name": f"made-up {n}"}, {"category": ("good", "bad")[n % 2], "price": n}) for n in range(20)
]


def spec_of(options: Mapping[str, Any]) -> AppSpec:
    return AppSpec.model_validate(
        {
            "name": "made-up",
            "items": {"text": ["name"]},
            "retrieve": {"sources": {"words": {"engine": "lexical"}}},
            "train": {"ranker": {"trainer": "wide_deep", "options": dict(options)}},
        }
    )


def task_in(
    folder: Path,
    train: Iterable[Example],
    validation: Iterable[Example] = (),
    start: Path | None = None,
    **options: Any,
) -> Task:
    """A task over `ITEMS` and these examples, with the options `SMALL` but for `options`."""
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        for i in ITEMS:
            file.write(json.dumps({"id": i.id, "fields": i.fields, "attributes": i.attributes}) + "\n")
    write_examples(folder / "train.jsonl", train)
    write_examples(folder / "validation.jsonl", validation)
    spec = spec_of({**SMALL, **options})
    checked = checked_options("ranker", spec.train["ranker"], TRAINER)
    return Task(spec, "ranker", folder, folder, folder / "items.jsonl", start, folder / "work", checked)


def train(task: Task, checkpoints: str = "checkpoints") -> Trained:
    TRAINER.prepare(task)
    loop = PlainLoop(task.work / checkpoints, digest="d")
    TRAINER.loop(task, loop)
    saved = loop.restore()
    assert saved is not None
    return TRAINER.finish(task, saved)


def ranker_of(trained: Trained) -> OnnxRanker:
    return OnnxRanker(trained.components[0].folder)


def taste(count: int, seed: int = 0) -> list[Example]:
    """Users u0..u4 like good items, u5..u9 bad ones, noisily."""
    random = Random(seed)
    examples = []
    for n in range(count):
        user, one = random.randrange(10), random.choice(ITEMS)
        likes = (user < 5) == (one.attributes["category"] == "good")
        examples.append(Example("", one.id, int(random.random() < (0.9 if likes else 0.1)), at_s=n, user=f"u{user}"))
    return examples
