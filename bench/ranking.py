"""Wide & Deep against popularity and a logistic regression, on made-up click logs whose click model is known.

`report` makes the logs (`bench.click_logs`), trains all three on the same weighted examples, ranks the held-out days
and says how near each comes to the oracle, with paired bootstrap intervals. Run: `python -m bench.ranking --seed 7`.

Two shares of the oracle's AUC: plain, and `excess`, (AUC - 0.5) / (oracle - 0.5). The second is the honest figure: a
ranker that tosses a coin already has most of the first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.click_logs import Logs, World, make_logs, make_world, write_logs
from bench.processes import BenchError
from serving.components.ranker import OnnxRanker
from serving.ports import ToRank
from serving.schema import AppSpec, Item
from training.bootstrap import Interval, figure_interval, generator
from training.job.loop import PlainLoop
from training.metrics import auc, calibration_error
from training.ports import Task
from training.wide_deep.fit import Part, Shop, encode
from training.wide_deep.options import WideDeepOptions
from training.wide_deep.trainer import TRAINER

USERS, SHOPS, REQUESTS = 2000, 400, 40_000
SMOOTHING = 20.0
RESAMPLES = 400
BAR_RATIO = 0.9

OPTIONS: Mapping[str, Any] = {
    "embeddings": {"user": 64, "item": 64, "item.category": 16, "record.slot": 4, "record.group": 4},
    "numeric": ["item.price", "item.rating", "item.meal_card", "record.meal_card"],
    "bands": {"price_band": {"of": "item.price", "count": 8}},
    "crosses": [
        ["user"],
        ["item"],
        ["user", "item.category"],
        ["user", "price_band"],
        ["record.group", "record.slot"],
        ["record.group", "price_band"],
        ["price_band", "item.category"],
        ["record.group", "record.slot", "item.category"],
        ["record.meal_card", "item.meal_card"],
    ],
}
"""As meal-card declares them."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of logs on disk, the trained ranker, and what each model says of the test part, (n,) by name."""

    world: World
    logs: Logs
    ranker: OnnxRanker
    labels: NDArray[np.float32]
    scores: Mapping[str, Scores]
    seconds: float

    def rows(self, name: str) -> NDArray[np.bool_]:
        """(n,): the test rows of a slice."""
        test = self.logs.part == 2
        late_user = self.world.late_users[self.logs.users[test]]
        late_shop = self.world.late_shops[self.logs.shops[test]]
        chosen: dict[str, NDArray[np.bool_]] = {
            "all": np.ones_like(late_user),
            "new users": late_user,
            "new shops": late_shop,
        }
        return chosen[name]


def run(folder: Path, seed: int, options: Mapping[str, Any] = OPTIONS, requests: int = REQUESTS) -> Trial:
    """Make the logs of `seed` under `folder` and train on them."""
    world = make_world(USERS, SHOPS, seed)
    logs = make_logs(world, requests, seed)
    write_logs(world, logs, folder)
    task = task_of(folder, options)
    begun = time.monotonic()
    TRAINER.prepare(task)
    loop = PlainLoop(folder / "checkpoints", digest="ranking")
    TRAINER.loop(task, loop)
    saved = loop.restore()
    if saved is None:
        raise BenchError("the training saved nothing")
    ranker = OnnxRanker(TRAINER.finish(task, saved).components[0].folder)
    seconds = time.monotonic() - begun
    test = encode(task.dataset / "test.jsonl", Shop.read(task.items), ranker.encoder.spec)
    train = Part.load(task.work / "train")
    columns = [ranker.encoder.spec.categories.index(name) for name in OPTIONS["embeddings"]]
    shop = columns[1]
    scores = {
        "wide_deep": ranker.run(test.features).astype(np.float64),
        "logistic regression": logistic_regression(train, test, columns),
        "popularity": popularity(train, test, shop),
        "oracle": logs.oracle[logs.part == 2],
    }
    return Trial(world, logs, ranker, test.labels, scores, seconds)


def task_of(folder: Path, options: Mapping[str, Any]) -> Task:
    spec = AppSpec.model_validate(
        {
            "name": "made-up-meals",
            "items": {"text": ["name"], "attributes": {"category": "keyword", "price": "number"}},
            "retrieve": {"sources": {"words": {"engine": "lexical"}}},
            "train": {"ranker": {"trainer": "wide_deep", "options": dict(options)}},
        }
    )
    work = folder / "work"
    work.mkdir(exist_ok=True)
    checked = WideDeepOptions.model_validate(options)
    return Task(spec, "ranker", folder, folder / "dataset", folder / "items.jsonl", None, work, checked)


def popularity(train: Part, test: Part, column: int) -> Scores:
    """(n,) by test row: clicks per impression of its shop, weighted, smoothed towards the mean."""
    code = train.features.codes[:, column]
    clicks = np.bincount(code, train.weights * train.labels)
    shown = np.bincount(code, train.weights)
    mean = clicks.sum() / shown.sum()
    rate = (clicks + SMOOTHING * mean) / (shown + SMOOTHING)
    rate[0] = mean
    return np.asarray(rate[test.features.codes[:, column]], np.float64)


def logistic_regression(train: Part, test: Part, columns: list[int]) -> Scores:
    """(n,): scikit-learn's, over the same features one by one: every category one-hot, and the numbers. The strength of
    its penalty is chosen on the last tenth of the training days."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.linear_model import LogisticRegression

    sizes = train.features.codes.max(axis=0) + 1

    def matrix(part: Part) -> Any:
        n = len(part)
        blocks = [csr_matrix(np.asarray(part.features.numbers))]
        for column in columns:
            ones = (np.ones(n, np.float32), (np.arange(n), part.features.codes[:, column]))
            blocks.append(csr_matrix(ones, shape=(n, int(sizes[column]))))
        return hstack(blocks, format="csr")

    x, cut = matrix(train), int(len(train) * 0.9)
    found = []
    for strength in (0.03, 0.1, 0.3):
        model = LogisticRegression(C=strength, max_iter=200)
        model.fit(x[:cut], train.labels[:cut], sample_weight=train.weights[:cut])
        late = model.decision_function(x[cut:])
        found.append((float(auc(train.labels[cut:], late, train.weights[cut:])), strength))
    best = LogisticRegression(C=max(found)[1], max_iter=200)
    best.fit(x, train.labels, sample_weight=train.weights)
    return np.asarray(best.predict_proba(matrix(test))[:, 1], np.float64)


def report(seed: int = 7, requests: int = REQUESTS) -> str:
    """The table, and whether the bars hold."""
    with tempfile.TemporaryDirectory() as folder:
        trial = run(Path(folder), seed, requests=requests)
        shown = [f"Made-up click logs, seed {seed}: {int((trial.logs.part == 0).sum())} training impressions."]
        shown += ["", "| slice | model | AUC | of the oracle's | excess over 0.5 | gain of wide_deep, 95 % |"]
        shown += ["|" + "---|" * 6]
        for name in ("all", "new users", "new shops"):
            shown += _slice_rows(trial, name, seed)
        shown += ["", _verdict(trial, seed), _calibration(trial), f"Training, all steps: {trial.seconds:.0f} s."]
        return "\n".join([*shown, *_latency(trial)])


def _slice_rows(trial: Trial, name: str, seed: int) -> list[str]:
    rows = trial.rows(name)
    y = trial.labels[rows]
    oracle = float(auc(y, trial.scores["oracle"][rows]))
    lines = []
    for model, scores in trial.scores.items():
        got = float(auc(y, scores[rows]))
        gain = "" if model in ("wide_deep", "oracle") else _text(difference(trial, model, rows, seed))
        excess = (got - 0.5) / (oracle - 0.5)
        lines.append(f"| {name} | {model} | {got:.4f} | {got / oracle:.1%} | {excess:.1%} | {gain} |")
    return lines


def difference(trial: Trial, other: str, rows: NDArray[np.bool_], seed: int) -> Interval | None:
    """Of the AUC of wide_deep less that of `other` on the test rows, by the paired bootstrap."""
    y, mine, its = trial.labels[rows], trial.scores["wide_deep"][rows], trial.scores[other][rows]
    return figure_interval(
        lambda counts: auc(y, mine, counts) - auc(y, its, counts), len(y), 0.95, generator(seed, other), RESAMPLES
    )


def _text(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:+.4f} .. {interval.high:+.4f}"


def _verdict(trial: Trial, seed: int) -> str:
    everything = trial.rows("all")
    aucs = {name: float(auc(trial.labels, scores)) for name, scores in trial.scores.items()}
    share = aucs["wide_deep"] / aucs["oracle"]
    intervals = [difference(trial, name, everything, seed) for name in ("popularity", "logistic regression")]
    above = all(interval is not None and interval.low > 0 for interval in intervals)
    held = "held" if share >= BAR_RATIO and above else "MISSED"
    return f"Bar (at least {BAR_RATIO:.0%} of the oracle's AUC, above both baselines by interval): {held}."


def _calibration(trial: Trial) -> str:
    """Against the true probability, which is that of a click where the place is looked at."""
    predicted, truth = trial.scores["wide_deep"], trial.scores["oracle"]
    drawn = np.random.default_rng(0).random(len(truth)) < truth
    return f"Calibration error on the test days, place set aside: {float(calibration_error(drawn, predicted)):.4f}."


def _latency(trial: Trial, candidates: int = 100, repeats: int = 300) -> list[str]:
    """Of one request on one core."""
    world = trial.world
    items = [
        Item(f"shop-{i:05}", {}, {"category": f"category {world.category[i]}", "price": float(world.price[i]),
                                   "rating": float(world.rating[i]), "meal_card": bool(world.takes_card[i])})
        for i in range(candidates)
    ]  # fmt: skip
    record = {"group": "child", "slot": "lunch", "meal_card": True}
    encoded = trial.ranker.encode(items)
    ways: dict[str, Callable[[], object]] = {
        "items as they come": lambda: trial.ranker.score([ToRank("user-00001", record, items)]),
        "items encoded before": lambda: trial.ranker.score_one("user-00001", record, encoded),
    }
    lines = []
    for name, way in ways.items():
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            way()
            times.append(time.perf_counter() - begun)
        middle, slow = (float(x) * 1e3 for x in np.quantile(times, [0.5, 0.99]))
        lines.append(f"One request, {candidates} candidates, {name}: p50 {middle:.2f} ms, p99 {slow:.2f} ms.")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    chosen = parser.parse_args()
    print(report(chosen.seed, chosen.requests))
