"""A made-up app whose items and queries carry records, over a sentence model of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serving.components.taste import TasteInfo, TasteInputs
from serving.schema import AppSpec, Item, RecordSpec
from tests.tiny_embedder import COLOURS, THINGS, make_model
from training.taste2vec.encoder import DIMENSION
from training.taste2vec.material import Examples, Material

APP = "paints"
VOCABULARY = {
    "warm": {"red": ["red", "빨강"], "amber": ["amber", "golden", "호박색"]},
    "cold": {"white": ["white", "하양"], "dark": ["dark", "black", "어두"]},
}
RECORD: dict[str, Any] = {
    "metrics": {"gloss": {"min": 0, "max": 10}, "weight": {"min": 0, "max": 100}},
    "context": {"hour": {"cycle": 24}, "mood": {"min": 0, "max": 10}, "place": {"choices": ["home", "shop"]}},
    "max_context": 3,
    "fields": {"budget": {"min": 0, "max": 1000}},
}


def record_spec() -> RecordSpec:
    return RecordSpec.model_validate(RECORD)


def spec(**changes: Any) -> AppSpec:
    raw = {
        "name": APP,
        "items": {"text": ["name"], "attributes": {"colour": "keyword"}},
        "record": RECORD,
        "retrieve": {"sources": {"taste": {"engine": "dense", "embedder": "encoder", "record": True, "top_k": 64}}},
        "train": {"encoder": {"trainer": "taste2vec"}},
        "example_query": "red wine",
        **changes,
    }
    return AppSpec.model_validate(raw)


def items() -> list[Item]:
    return [
        Item(
            f"P{c}{t}",
            {"name": f"{colour} {thing}", "record": {"metrics": {"gloss": c + 1, "weight": 10 * (t + 1)}}},
            {"colour": colour},
        )
        for c, colour in enumerate(COLOURS)
        for t, thing in enumerate(THINGS)
    ]


def make_app_folder(folder: Path) -> Path:
    """With the untrained encoder `encoder/`; its sentence model lies within."""
    (folder / "encoder").mkdir(parents=True)
    make_model(folder / "encoder" / "sentences")
    about = {"text": "sentences", "vocabulary": VOCABULARY}
    (folder / "encoder" / "encoder.yaml").write_text(yaml.safe_dump(about, allow_unicode=True), encoding="utf-8")
    return folder


def info() -> TasteInfo:
    return TasteInfo(record_spec().model_dump(mode="json"), VOCABULARY, DIMENSION, 16)


def made_up_material(rows: int = 400, catalogue: int = 60, seed: int = 0) -> Material:
    """Queries that are noisy views of the item they belong to: its text turned, its words, its metrics with error."""
    draw = np.random.default_rng(seed)
    widths = info().widths
    found = TasteInputs.empty(catalogue, widths)
    found.text[:] = draw.standard_normal(found.text.shape) / 4
    found.senses[:] = draw.random(found.senses.shape) < 0.3
    found.metrics[:] = draw.random(found.metrics.shape) * (10, 100)
    found.metrics_there[:] = 1
    turn, _ = np.linalg.qr(draw.standard_normal((widths.text, widths.text)))
    item = draw.integers(0, catalogue, rows)
    queries = found.rows(item)
    queries = TasteInputs(
        (queries.text @ turn + draw.standard_normal(queries.text.shape) / 16).astype(np.float32),
        queries.senses.copy(),
        (queries.metrics + draw.standard_normal(queries.metrics.shape) * (0.3, 3)).astype(np.float32),
        (draw.random(queries.metrics.shape) < 0.8).astype(np.float32),
        *TasteInputs.empty(rows, widths)[4:],
    )
    cut = rows * 4 // 5
    everything = examples(np.arange(rows), item)
    none = examples(np.empty(0, np.int64), np.empty(0, np.int64))
    return Material(
        queries, found, everything.rows(slice(0, cut)), none, everything.rows(slice(cut, None)),
        np.zeros((0, catalogue), np.bool_),
    )  # fmt: skip


def examples(query: Any, item: Any, label: int = 1) -> Examples:
    count = len(query)
    return Examples(
        np.asarray(query, np.int64), np.asarray(item, np.int64), np.full(count, label, np.int64),
        np.ones(count, np.float32), np.full(count, -1, np.int64),
    )  # fmt: skip
