"""beauty-finder on its time split: a fine-tuned encoder beside BM25, popularity and the encoder it was made of.

    python -m bench.beauty [--data DIR] [--split valid|test] [--limit N] [--steps N] [--model NAME=FOLDER ...]

Every system gets the same queries (reviews after the split, which ask for the product they are of) and searches all
items, exactly. BM25 and the encoders read the same text of an item. `--steps` fine-tunes with the trainer `contrastive`
on the pairs before the split; `--model` adds an encoder that lies in a folder, such as one that `palate train` made.
The candidates, a hundred a query and system, are written beside the tables.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console

from serving.components.lexical import build_lexical
from serving.components.text import item_text
from serving.ports import Vectors
from serving.retrieve.lexical import LexicalSource
from serving.retrieve.make_embedder import make_embedder
from serving.schema import AppSpec, Item, Query, find_app, load_app_spec
from serving.store.seed import read_items
from training.bootstrap import generator, mean_interval
from training.cases import Case, load_cases
from training.evaluate import RECALL_AT, Ask, RankedAnswer, Report, evaluate
from training.models import MINILM
from training.progress import Progress

APP = "beauty-finder"
OUT = Path("bench-results") / "beauty"
DATA_VARIABLE = "PALATE_BEAUTY_DATA"
DEPTH = 100
UNTUNED, TUNED, BM25, POPULARITY = "untuned", "fine-tuned", "BM25", "popularity"
SAMPLE_TEXTS = 512
QUERIES_AT_ONCE = 64
VALIDATION_RATIO = 0.02

Builder = Callable[[], Ask]

progress = Progress(APP, Console(stderr=True, soft_wrap=True))


@dataclass(frozen=True, slots=True)
class Settings:
    """`limit` 0: every case. `steps` 0: nothing is trained. `models`: name -> sentence-transformers folder."""

    split: str = "valid"
    query: str = "review_text"
    limit: int = 2000
    steps: int = 0
    models: Mapping[str, Path] = field(default_factory=dict)
    out: Path = OUT


class World(NamedTuple):
    """What every system is given. `texts`: what is searched of each item, in order."""

    spec: AppSpec
    folder: Path
    items: list[Item]
    texts: list[str]
    cases: list[Case]


class Outcome(NamedTuple):
    """`answers`: what each case got. `seconds`: of building the index and of asking."""

    report: Report
    answers: list[RankedAnswer]
    seconds: tuple[float, float]


def report(settings: Settings) -> str:
    """The tables of all systems, as text; also written to `settings.out`, with the candidates of each system."""
    world = load_world(settings)
    with tempfile.TemporaryDirectory(prefix="palate-beauty-") as work:
        models: dict[str, str | Path] = {UNTUNED: MINILM, **settings.models}
        if settings.steps:
            models[TUNED] = fine_tune(world, settings.steps, Path(work))
        outcomes = {POPULARITY: measured(POPULARITY, partial(by_popularity, world.items), world),
                    BM25: measured(BM25, partial(by_words, world, Path(work)), world)}  # fmt: skip
        for name, model in models.items():
            exported = Path(work) / f"embedder-{len(outcomes)}"
            outcomes[name] = measured(name, partial(by_vectors, world, model, exported), world)
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, outcome in outcomes.items():
        write_candidates(settings.out / f"candidates-{settings.split}-{name}.jsonl", world.cases, outcome.answers)
    text = render(settings.split, outcomes, len(world.items))
    (settings.out / f"{settings.split}.txt").write_text(text + "\n", encoding="utf-8")
    return text


def load_world(settings: Settings) -> World:
    """Through app.yaml's own scripts: the catalogue and the cases, as `palate` gets them."""
    folder = find_app(APP)
    spec = load_app_spec(folder)
    items = list(read_items(spec, folder))
    fields = spec.text_weights(spec.retrieve.sources["dense"])
    limit = f" --limit {settings.limit}" if settings.limit else ""
    cases = load_cases(f"beauty.py cases --split {settings.split} --query {settings.query}{limit}", folder)
    return World(spec, folder, items, [item_text(item, fields) for item in items], cases)


def measured(name: str, build: Builder, world: World) -> Outcome:
    started = time.perf_counter()
    ask = build()
    built, answers = time.perf_counter(), list[RankedAnswer]()

    def kept(queries: Sequence[str]) -> list[RankedAnswer]:
        found = ask(queries)
        answers.extend(found)
        return found

    with progress.step(f"asking {name}", len(world.cases)) as step:
        said = evaluate(kept, world.cases, DEPTH, QUERIES_AT_ONCE, lambda done, _: step(done))
    return Outcome(said, answers, (built - started, time.perf_counter() - built))


# ---- Systems


def by_popularity(items: Sequence[Item]) -> Ask:
    """The items with most reviews before the split, whatever is asked."""
    best = sorted(items, key=lambda item: (-int(item.fields["reviews"]), item.id))[:DEPTH]
    answer = RankedAnswer(tuple(item.id for item in best))
    return lambda queries: [answer] * len(queries)


def by_words(world: World, work: Path) -> Ask:
    """BM25 (k1 1.2, b 0.75, stems) over the text that the encoders read."""
    texts = [Item(item.id, {"text": text}) for item, text in zip(world.items, world.texts, strict=True)]
    with progress.step("BM25: words", len(texts)) as step:
        build_lexical(work / "bm25", texts, {"text": 1.0}, {"name_bonus": 0.0}, step)
    source = LexicalSource.load(work / "bm25")

    def ask(queries: Sequence[str]) -> list[RankedAnswer]:
        hits = source.search([Query(query) for query in queries], [None] * len(queries), DEPTH)
        return [RankedAnswer(tuple(world.items[row].id for row in found.rows)) for found in hits]

    return ask


def by_vectors(world: World, model: str | Path, folder: Path) -> Ask:
    """An encoder as Palate serves it on a CPU, and exact search."""
    from training.export import export_embedder  # torch: seconds to import

    source = world.spec.retrieve.sources["dense"]
    with progress.step("exporting to ONNX", None):
        export_embedder(model, folder, world.texts[:SAMPLE_TEXTS])
    embedder = make_embedder(folder, source.precision, max_tokens=source.max_tokens)
    with progress.step("embedding the items", len(world.texts)) as step:
        vectors = embedder.embed_documents(world.texts, lambda done, _: step(done))

    def ask(queries: Sequence[str]) -> list[RankedAnswer]:
        rows = nearest(embedder.embed(queries), vectors, DEPTH)
        return [RankedAnswer(tuple(world.items[row].id for row in found)) for found in rows]

    return ask


def nearest(queries: Vectors, vectors: Vectors, depth: int) -> NDArray[np.int64]:
    """(q, depth) rows of `vectors` by falling cosine, of equals the first; both are unit rows."""
    depth = min(depth, vectors.shape[0])
    found = np.empty((len(queries), depth), np.int64)
    for place, scores in enumerate(queries @ vectors.T):
        least = np.partition(scores, -depth)[-depth]
        rows = np.flatnonzero(scores >= least)  # with all that are as near as the last one
        found[place] = rows[np.argsort(-scores[rows], kind="stable")][:depth]
    return found


def fine_tune(world: World, steps: int, work: Path) -> Path:
    """`steps` steps of the trainer that app.yaml names, in this process, on the pairs before the split: the newest of
    them validate. Returns the model's folder."""
    from training.dataset.example import DatasetInfo, save_info, write_examples
    from training.dataset.extra import extra_examples
    from training.job.loop import PlainLoop
    from training.ports import Task
    from training.trainers import checked_options, find_trainer

    name, train = next(iter(world.spec.train.items()))
    examples = sorted(extra_examples(train.data.extra or "", world.folder), key=lambda e: (e.at_s, e.query, e.item))
    newest = max(1, int(len(examples) * VALIDATION_RATIO))
    dataset, items = work / "dataset", work / "items.jsonl"
    dataset.mkdir()
    parts = {"train": examples[:-newest], "validation": examples[-newest:], "test": []}
    counts = {part: write_examples(dataset / f"{part}.jsonl", some) for part, some in parts.items()}
    save_info(dataset, DatasetInfo("", counts))
    items.write_bytes(b"".join(orjson.dumps({"id": i.id, "fields": dict(i.fields)}) + b"\n" for i in world.items))
    trainer = find_trainer(train.trainer)
    train = train.model_copy(update={"options": {**train.options, "max_steps": steps}})
    spec = world.spec.model_copy(update={"train": {name: train}})
    folder = work / "training"
    folder.mkdir()
    task = Task(spec, name, world.folder, dataset, items, None, folder, checked_options(name, train, trainer),
                train.seed)  # fmt: skip
    trainer.prepare(task)
    with progress.step(f"training, {steps} steps", steps) as step:
        loop = PlainLoop(work / "checkpoints", on=lambda event: step(int(event.get("step", 0))))
        trainer.loop(task, loop)
    saved = loop.restore()
    assert saved is not None, "the trainer saved nothing"
    return next(iter(trainer.finish(task, saved).models.values()))


# ---- What is told


def render(split: str, outcomes: Mapping[str, Outcome], items: int) -> str:
    """A column a system; below, by how much each encoder's Recall@100 differs from what it is compared with, with the
    paired bootstrap's interval at 95 %."""
    reports = {name: outcome.report for name, outcome in outcomes.items()}
    first = next(iter(reports.values()))
    slices = "; ".join(f"{name} {m.count:,}" for name, m in first.slices.items())
    rows = [("", *reports)]
    rows += [(f"Recall@{k}", *(f"{r.overall.recall_at[k]:.4f}" for r in reports.values())) for k in RECALL_AT]
    rows.append(("MRR", *(f"{r.overall.mrr_at_k:.4f}" for r in reports.values())))
    rows += [(f"Recall@{DEPTH}, {name}", *(f"{r.slices[name].recall_at_k:.4f}" for r in reports.values()))
             for name in first.slices]  # fmt: skip
    rows.append(("index, s", *(f"{outcome.seconds[0]:.1f}" for outcome in outcomes.values())))
    rows.append(("queries/s", *(f"{first.overall.count / o.seconds[1]:,.0f}" for o in outcomes.values())))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    head = f"{APP}, {split} part: {first.overall.count:,} queries ({slices}), {items:,} items"
    return "\n".join([head, "-" * len(table[0]), *table, "-" * len(table[0]), *differences(reports)])


def differences(reports: Mapping[str, Report]) -> Iterator[str]:
    """Of every encoder that was trained; of the untuned one where there is none."""
    trained = [name for name in reports if name not in (POPULARITY, BM25, UNTUNED)]
    for name in trained or [UNTUNED]:
        for other in (BM25, UNTUNED):
            if other != name:
                gain = reports[name].values["recall_at_k"] - reports[other].values["recall_at_k"]
                interval = mean_interval(gain, 0.95, generator(0, name, other))
                assert interval is not None, "there are cases"
                bounds = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
                yield f"Recall@{DEPTH}, {name} - {other}: {gain.mean():+.4f} {bounds}"


def write_candidates(path: Path, cases: Sequence[Case], answers: Sequence[RankedAnswer]) -> None:
    """A line a case: the query, what is right, and the ids that were found, best first."""
    with path.open("wb") as file:
        for case, answer in zip(cases, answers, strict=True):
            line = {"query": case.query, "accept": sorted(case.accept), "candidates": answer.ids}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


@contextmanager
def data_folder(folder: Path | None) -> Iterator[None]:
    """The scripts of the example read the folder of their data from the environment."""
    before = os.environ.get(DATA_VARIABLE)
    if folder is not None:
        os.environ[DATA_VARIABLE] = str(folder.resolve())
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop(DATA_VARIABLE)
            if before is not None:
                os.environ[DATA_VARIABLE] = before


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.beauty", description="beauty-finder on its time split")
    parser.add_argument("--data", type=Path, help=f"folder of the example's data (default: {DATA_VARIABLE})")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--query", choices=("review_text", "keywords"), default="review_text")
    parser.add_argument("--limit", type=int, default=2000, help="so many queries at most; 0: all (2000)")
    parser.add_argument("--steps", type=int, default=0, help="fine-tune for so many steps (0: not at all)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="one more encoder")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    named = [text.partition("=") for text in options.model]
    if wrong := [name for name, equals, folder in named if not (name and equals and Path(folder).is_dir())]:
        parser.error(f"--model wants NAME=FOLDER with a folder that is there: {wrong}")
    models = {name: Path(folder) for name, _, folder in named}
    with data_folder(options.data):
        print(report(Settings(options.split, options.query, options.limit, options.steps, models, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
