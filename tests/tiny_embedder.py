"""A sentence-transformers model of a few thousand weights, and a catalogue in two languages for it to learn.

Item "red wine" is asked for as "derr niwe", a made-up language: each word backwards, its first letter doubled. A model
that learnt the words finds combinations it never saw. In Korean it is "빨간 포도주를 찾아", of which the model knows no
letter. What the tests of contrastive training train.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.schema import AppSpec
from training.contrastive.options import ContrastiveOptions
from training.dataset.example import Example, write_examples
from training.ports import Task

COLOURS = ("red", "white", "green", "amber", "black", "golden", "pale", "dark")
THINGS = ("wine", "beer", "lamp", "chair", "coat", "bread", "stone", "paper")
KOREAN_COLOURS = ("빨간", "하얀", "초록", "호박색", "검은", "금빛", "연한", "짙은")
KOREAN_THINGS = ("포도주", "맥주", "등불", "걸상", "외투", "식빵", "돌멩이", "종이")
UNSEEN = 5
"""Every so many combinations are kept out of training."""


def foreign(text: str) -> str:
    return " ".join(word[-1] + word[::-1] for word in text.split())


def korean(text: str) -> str:
    colour, thing = text.split()
    return f"{KOREAN_COLOURS[COLOURS.index(colour)]} {KOREAN_THINGS[THINGS.index(thing)]}를 찾아"


def names() -> list[str]:
    return [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


def make_model(folder: Path) -> Path:
    """Two layers of 32, seeded."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    set_seed(7)
    words = [*COLOURS, *THINGS, *map(foreign, COLOURS), *map(foreign, THINGS)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    plain = folder.with_suffix(".bert")
    BertTokenizerFast(vocab={word: n for n, word in enumerate(vocabulary)}).save_pretrained(plain)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=40,
        )
    ).save_pretrained(plain)
    modules = [Transformer(str(plain), max_seq_length=32), Pooling(32, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


def make_task(model: Path, folder: Path, seed: int = 0, ask: Callable[[str], str] = foreign, **options: Any) -> Task:
    """A task on the catalogue, everything in `folder`; `ask` makes an item's query of its name. `options` are the
    trainer's, over quick ones."""
    folder.mkdir(parents=True)
    ids = [f"i{n:02}" for n in range(len(names()))]
    items = [{"id": item, "fields": {"name": name}} for item, name in zip(ids, names(), strict=True)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for n, (item, name) in enumerate(zip(ids, names(), strict=True)):
        part = parts["train" if n % UNSEEN else "validation"]
        wrong = ids[(n + 8) % len(ids)]
        part += [Example(ask(name), item, 1, 1.0 + n % 2), Example(ask(name), wrong, 0)]
    for part_name, examples in parts.items():
        write_examples(folder / f"{part_name}.jsonl", examples)
    quick = {"epochs": 10, "batch_size": 16, "learning_rate": 5e-3, "evaluate_every": 10, "warmup_ratio": 0.1}
    spec = AppSpec.model_validate(
        {
            "name": "tiny",
            "items": {"text": ["name"]},
            "retrieve": {"sources": {"dense": {"engine": "dense", "embedder": model.name}}},
            "train": {"embedder": {"trainer": "contrastive", "options": quick | options, "seed": seed}},
        }
    )
    checked = ContrastiveOptions.model_validate(spec.train["embedder"].options)
    return Task(spec, "embedder", model.parent, folder, folder / "items.jsonl", None, folder / "work", checked, seed)
