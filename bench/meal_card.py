"""meal-card: how good its recommendations are, against popularity, content and the rest of its parts; and how fast.

    python -m bench.meal_card quality [--sessions N] [--seed N]
    python -m bench.meal_card load --url URL [--users N] [--seconds N] [--key KEY]

`quality` builds a release and trains the ranker on the days before the split of the made-up world, and asks for users
of the days after it. What they would be glad of is known, so every recommended shop has a true gain. All systems get
the same queries and the same filters. `load` drives a platform that runs (`palate up --app meal-card`), as so many
users at once who each ask again once they are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from registry.memory_store import MemoryStore
from serving import build
from serving.components.catalogue import Catalogue
from serving.config import ServingConfig
from serving.fakes import MemoryItemStore
from serving.schema import AppSpec, Item, Query, find_app, load_app_spec
from serving.store.people import ensure_people_secret
from training.bootstrap import generator, mean_interval
from training.config import TrainingConfig
from training.dataset import DatasetRequest, build_dataset
from training.index import BuiltRelease, Inputs, ReleaseBuilder
from training.job.loop import PlainLoop
from training.metrics import ndcg_at_k
from training.ports import Task, Trained
from training.progress import Progress
from training.trainers import checked_options, find_trainer

APP = "meal-card"
K = 5
AT_ONCE = 50
SESSIONS = 1000
WHOLE = "whole pipeline"
RANDOM = "by chance"
Values = NDArray[np.float64]
Systems = Mapping[str, Callable[[AppSpec], AppSpec]]

progress = Progress(APP, Console(stderr=True, soft_wrap=True))


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and, by shop number, how glad its user would be of each shop that is what was asked for; others 0."""

    query: Query
    gains: Values
    kind: str


def only(*names: str) -> Callable[[AppSpec], AppSpec]:
    """The app with these sources alone, in the order of retrieval."""

    def changed(spec: AppSpec) -> AppSpec:
        sources = {name: spec.retrieve.sources[name] for name in names}
        return spec.model_copy(update={"retrieve": spec.retrieve.model_copy(update={"sources": sources}), "rank": None})

    return changed


SYSTEMS: Systems = {
    "popularity": only("popularity"),
    "content": only("content"),
    "collaborative": only("collaborative"),
    "contextual": only("contextual"),
    "dense": only("dense"),
    "all sources, not ranked": only("dense", "popularity", "content", "collaborative", "contextual"),
    WHOLE: lambda spec: spec,
}


def world_of(folder: Path, seed: int) -> Any:
    """The example's made-up world; its modules lie beside its app.yaml."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("made_up").World(seed)
    finally:
        sys.path.remove(str(folder))


def questions(world: Any, count: int, seed: int) -> list[Asked]:
    """Of sessions after the split. The app knows its user's city and asks for shops there alone; half of the users
    say what they fancy."""
    made_up = sys.modules["made_up"]
    sessions = list(world.sessions(made_up.TEST_DAY, made_up.DAYS))
    rng = np.random.default_rng([seed, 9])
    asked: list[Asked] = []
    for number in sorted(rng.choice(len(sessions), size=min(count, len(sessions)), replace=False).tolist()):
        session = sessions[number]
        city = session.record["city"]
        wanted: dict[str, Any] = {"city": city}
        text, kind = "뭐 먹지? 추천해줘", "open"
        if rng.random() < 0.5:
            kind, food = "a kind of food", str(rng.choice(world.kinds))
            text, wanted["category"] = f"{food} 추천해줘", food
        if world.has_card[session.user] and rng.random() < 0.5:
            text, wanted["meal_card"] = f"급식카드 되는 {text}", True
        glad = world.accepts(session.user, made_up.part_of(session.record["hour"]))
        gains = np.zeros(len(glad))
        right = list(world.shops_where(wanted))
        gains[right] = glad[right]
        query = Query(text, K, {"city": city}, world.user_id(session.user), record=session.record)
        asked.append(Asked(query, gains, kind))
    return asked


def build_release(spec: AppSpec, folder: Path, world: Any, home: Path) -> tuple[BuiltRelease, str]:
    """With the ranker in it, and a sentence about that."""
    config = TrainingConfig(ServingConfig(home=home, threads=1))
    store = MemoryItemStore()
    store.upsert(spec.name, [Item(one["id"], one["fields"], one["attributes"]) for one in world.items])
    begun = time.monotonic()
    ranker = train_ranker(spec, folder, world, home)
    auc, seconds = ranker.metrics["validation_auc"], time.monotonic() - begun
    about = f"The ranker was trained in {seconds:.0f} s; validation AUC {auc:.3f}."
    work = home / "work"
    work.mkdir()
    builder = ReleaseBuilder(spec, folder, work, config, MemoryStore(), progress)
    return builder.build(store, Inputs(components=ranker.components)), about


def train_ranker(spec: AppSpec, folder: Path, world: Any, home: Path) -> Trained:
    """As `palate train --only ranker` does, in this process."""
    import orjson

    train = spec.train["ranker"]
    items, dataset, work = home / "items.jsonl", home / "dataset", home / "ranker"
    items.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in world.items))
    for made in (dataset, work):
        made.mkdir()
    request = DatasetRequest(
        app=spec.name,
        data=train.data,
        catalogue=[one["id"] for one in world.items],
        secret=ensure_people_secret(home),
        now_s=0.0,
        app_folder=folder,
        per_user=True,
    )
    build_dataset(request, dataset)
    trainer = find_trainer(train.trainer)
    task = Task(
        spec, "ranker", folder, dataset, items, None, work, checked_options("ranker", train, trainer), train.seed
    )
    trainer.prepare(task)
    loop = PlainLoop(work / "checkpoints", digest="bench")
    trainer.loop(task, loop)
    saved = loop.restore()
    assert saved is not None
    return trainer.finish(task, saved)


async def recommended(
    spec: AppSpec, folders: Mapping[str, Path], asked: Sequence[Asked], home: Path
) -> list[list[str]]:
    """The ids that a system recommends for each question. Understanding is by the rules: no language model runs."""
    config = ServingConfig(home=home, threads=1)
    embedders = build.build_embedders(spec, folders, config)
    embeddings = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
    catalogue, secret = Catalogue.load(folders["catalogue"]), ensure_people_secret(home)
    retrieval = build.build_retrieval(spec, folders, embeddings, catalogue, secret)
    ranking = build.build_ranking(spec, folders, catalogue, secret)
    pipeline = build.build_pipeline(build.build_understand(spec, folders), retrieval, ranking)
    found: list[list[str]] = []
    for start in range(0, len(asked), AT_ONCE):
        answers = await pipeline.answer([one.query for one in asked[start : start + AT_ONCE]])
        found += [[candidate.id for candidate in answer.lines[0].result.candidates[:K]] for answer in answers]
    return found


def figures(found: Sequence[Sequence[str]], asked: Sequence[Asked], number_of: Mapping[str, int]) -> dict[str, Values]:
    """(questions,) each: NDCG@5 of the true gains, and whether one of the user's own best three is among the five."""
    gains = np.zeros((len(asked), K))
    ideal = np.zeros((len(asked), K))
    hit = np.zeros(len(asked))
    for row, (ids, one) in enumerate(zip(found, asked, strict=True)):
        numbers = [number_of[item] for item in ids]
        gains[row, : len(ids)] = one.gains[numbers]
        order = np.argsort(-one.gains, kind="stable")
        ideal[row] = one.gains[order[:K]]
        hit[row] = bool(set(order[:3].tolist()) & set(numbers))
    return {"NDCG@5": ndcg_at_k(gains, ideal, K), "hit@5": hit}


def by_chance(asked: Sequence[Asked], ids: Sequence[str], seed: int) -> list[list[str]]:
    """Five of the shops that are what was asked for."""
    rng = np.random.default_rng([seed, 10])
    right = [np.flatnonzero(one.gains > 0) for one in asked]
    return [[ids[n] for n in rng.permutation(one)[:K]] for one in right]


def quality(sessions: int, seed: int) -> str:
    folder = find_app(APP)
    world = world_of(folder, seed)
    spec = load_app_spec(folder)
    if seed != 7:
        spec = _with_seed(spec, seed)
    with tempfile.TemporaryDirectory() as home:
        release, about = build_release(spec, folder, world, Path(home))
        asked = questions(world, sessions, seed)
        number_of = {one["id"]: n for n, one in enumerate(world.items)}
        results = {RANDOM: figures(by_chance(asked, list(number_of), seed), asked, number_of)}
        for name, changed in SYSTEMS.items():
            with progress.step(name, None):
                found = asyncio.run(recommended(changed(spec), release.named, asked, Path(home)))
            results[name] = figures(found, asked, number_of)
    return table(results, asked, seed, about)


def _with_seed(spec: AppSpec, seed: int) -> AppSpec:
    """Another world: the scripts of app.yaml are told so."""
    raw = spec.model_dump(mode="json")
    raw["feedback"]["source"] += f" --seed {seed}"
    raw["train"]["ranker"]["data"]["extra"] += f" --seed {seed}"
    return AppSpec.model_validate(raw)


def table(results: Mapping[str, Mapping[str, Values]], asked: Sequence[Asked], seed: int, about: str) -> str:
    whole = results[WHOLE]["NDCG@5"]
    kinds = sorted({one.kind for one in asked})
    lines = [
        f"Made-up world, seed {seed}: {len(asked)} questions of the days after the split. {about}",
        "",
        "| system | NDCG@5 | " + " | ".join(f"{kind}" for kind in kinds) + " | hit@5 | whole pipeline gains, 95 % |",
        "|" + "---|" * (4 + len(kinds)),
    ]
    for name, values in results.items():
        ndcg = values["NDCG@5"]
        slices = [f"{ndcg[[one.kind == kind for one in asked]].mean():.3f}" for kind in kinds]
        interval = mean_interval(whole - ndcg, 0.95, generator(seed, name)) if name != WHOLE else None
        gain = "" if interval is None else f"{interval.low:+.3f} .. {interval.high:+.3f}"
        lines.append(f"| {name} | {ndcg.mean():.3f} | {' | '.join(slices)} | {values['hit@5'].mean():.3f} | {gain} |")
    return "\n".join(lines)


# ---- load


@dataclass(slots=True)
class Told:
    """What one user got: seconds of every answer, and what went wrong."""

    seconds: list[float]
    errors: list[str]


async def load(url: str, users: int, for_s: float, key: str, seed: int) -> str:
    world = world_of(find_app(APP), seed)
    asked = questions(world, max(users * 10, 200), seed)
    until = time.monotonic() + for_s
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=users, max_keepalive_connections=users)
    async with httpx.AsyncClient(base_url=url, timeout=60.0, headers=headers, limits=limits) as client:
        told = await asyncio.gather(*(_user(client, asked[n::users], n, until) for n in range(users)))
    seconds = sorted(one for each in told for one in each.seconds)
    errors = [error for each in told for error in each.errors]
    if not seconds:
        return f"{users} users: no answer at all; the first error: {errors[:1]}"
    middle, slow, slowest = np.quantile(seconds, [0.5, 0.95, 0.99])
    lines = [
        "| users at once | answers | per second | p50 s | p95 s | p99 s | errors |",
        "|" + "---|" * 7,
        f"| {users} | {len(seconds)} | {len(seconds) / for_s:.1f} | {middle:.2f} | {slow:.2f} | {slowest:.2f} "
        f"| {len(errors)} |",
    ]
    return "\n".join([*lines, *(f"first error: {error}" for error in errors[:1])])


async def _user(client: httpx.AsyncClient, asked: Sequence[Asked], number: int, until: float) -> Told:
    told, turn = Told([], []), 0
    while time.monotonic() < until:
        query = asked[turn % len(asked)].query
        body = {"model": APP, "messages": [{"role": "user", "content": query.text}], "user": query.user}
        begun = time.monotonic()
        try:
            (await client.post("/v1/chat/completions", json=body)).raise_for_status()
            told.seconds.append(time.monotonic() - begun)
        except httpx.HTTPError as error:
            told.errors.append(f"user {number}: {error!r}")
        turn += 1
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_quality, of_load = commands.add_parser("quality"), commands.add_parser("load")
    of_quality.add_argument("--sessions", type=int, default=SESSIONS)
    of_load.add_argument("--url", required=True)
    of_load.add_argument("--users", type=int, default=100)
    of_load.add_argument("--seconds", type=float, default=30.0)
    of_load.add_argument("--key", default="")
    for one in (of_quality, of_load):
        one.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if options.command == "quality":
        print(quality(options.sessions, options.seed))
    else:
        print(asyncio.run(load(options.url, options.users, options.seconds, options.key, options.seed)))


if __name__ == "__main__":
    main()
