"""The wide_deep trainer: from examples of what was chosen and what was not, to the ranker component.

`training.trainers` names it, `training.run` drives it. With `train.start: stable` it goes on from the ranker that
serves: vocabularies grow, known ids keep what was learnt of them, new ones begin as the unknown id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from registry.content import digest_json
from serving.components.rank_features import FeatureSpec
from serving.components.ranker import OnnxRanker, RankerInfo
from serving.errors import PhaseFailed
from serving.schema import AppSpec
from training.dataset.example import read_examples
from training.errors import TrainingRefused
from training.evidence import Evidence, Scored, by_user
from training.metrics import auc, calibration_error, log_loss
from training.ports import Loop, NewComponent, Task, Trained
from training.wide_deep.fit import Part, Shop, encode, fit
from training.wide_deep.options import WideDeepOptions

COMPONENT = "rank"
FEATURES_FILE = "features.json"
RANKER_FOLDER = "ranker"


class WideDeepTrainer:
    """See `training.ports.Trainer` and `training.ports.ShowsEvidence`."""

    name = "wide_deep"
    options: type[BaseModel] = WideDeepOptions

    def component(self, spec: AppSpec) -> str:  # noqa: ARG002 - an app has one rank phase
        return COMPONENT

    def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:  # noqa: ARG002
        return {
            "learning_rate": (3e-4, 1e-2),
            "wide_rate": (5e-3, 0.2),
            "wide_l2": (0.1, 100.0),
            "embedding_decay": (1e-4, 0.1),
            "dropout": (0.1, 0.3, 0.5),
        }

    def prepare(self, task: Task) -> None:
        """Writes the fitted features and the encoded examples. Raises TrainingRefused, DatasetInvalid."""
        options = _options(task)
        shop = Shop.read(task.items)
        start = _start(task.start).features if task.start else None
        spec = fit(task.dataset / "train.jsonl", shop, options, start, task.seed)
        train = encode(task.dataset / "train.jsonl", shop, spec)
        validation = encode(task.dataset / "validation.jsonl", shop, spec)
        mean = train.weights.mean()
        for name, part in (("train", train), ("validation", validation)):
            replace(part, weights=part.weights / mean).save(task.work / name)
        (task.work / FEATURES_FILE).write_text(json.dumps(spec.as_json()), encoding="utf-8")

    def loop(self, task: Task, loop: Loop) -> None:
        from training.wide_deep.export import weights_of
        from training.wide_deep.loop import Data, Run

        train, validation = (Part.load(task.work / name) for name in ("train", "validation"))
        start = weights_of(task.start) if task.start else None
        Run(Data(_features(task), train, validation, start), _options(task), task.seed, loop).run()

    def evidence(self, task: Task, component: Path | None) -> Evidence | None:
        """How well the ranker in this folder orders what each user of the test part was shown, the newest of the data:
        it was trained on what came before. None where there is no ranker, or no user to judge by. Raises PhaseFailed,
        DatasetInvalid."""
        if component is None:
            return None
        ranker, test = OnnxRanker(component), task.dataset / "test.jsonl"
        shop = Shop.read(task.items)
        part = encode(test, shop, ranker.encoder.spec)
        users = [example.user for chunk, _ in shop.chunks(read_examples(test)) for example in chunk]
        if not len(part):
            return None
        labels, weights = part.labels.astype(np.float64), part.weights.astype(np.float64)
        probabilities = ranker.run(part.features).astype(np.float64)
        key = digest_json({"users": users, "labels": labels.tolist(), "weights": weights.tolist()})
        found = by_user(users, Scored(labels, probabilities, weights, key=key))
        return found if found.cases else None

    def finish(self, task: Task, saved: Path) -> Trained:
        """Calibrates on the validation part and writes the component."""
        from training.wide_deep.export import logits, write_ranker
        from training.wide_deep.loop import load_state
        from training.wide_deep.model import WideDeep

        options, spec = _options(task), _features(task)
        state = load_state(saved)
        model = WideDeep(spec, options)
        model.load_state_dict(dict(state["best"]))
        train, validation = (Part.load(task.work / name) for name in ("train", "validation"))
        found = logits(model, spec, validation.features)
        scale, shift = 1.0, 0.0
        if options.calibration == "platt":
            scale, shift = platt(found, validation.labels, validation.weights)
        sample = validation if len(validation) else train
        folder = task.work / RANKER_FOLDER
        ranker = write_ranker(folder, model, RankerInfo(spec, scale, shift), sample.features)
        metrics = {"train_examples": float(len(train)), "best_step": float(state["progress"][1])}
        if len(validation):
            metrics |= _figures(validation, found, found * scale + shift)
        component = task.train.component or self.component(task.spec)
        return Trained(
            components=(NewComponent(component, "ranker", folder, ranker.fingerprint),), metrics=metrics
        )  # fmt: skip


def platt(
    logits: NDArray[np.float64], labels: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[float, float]:
    """(scale, shift) of the logits with the lowest weighted log loss (Platt 1999), with his smoothed targets; a
    temperature (Guo et al. 2017) is 1 / scale. (1, 0) where there is one label only, or where the order would turn."""
    from scipy.optimize import minimize

    y, w = labels.astype(np.float64), weights.astype(np.float64)
    right, wrong = float(w[y == 1].sum()), float(w[y == 0].sum())
    if not right or not wrong:
        return 1.0, 0.0
    target = np.where(y == 1, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        x = at[0] * logits + at[1]
        slope = w * (_sigmoid(x) - target) / w.sum()
        value = float(w @ (np.logaddexp(0, x) - target * x) / w.sum())
        return value, np.array([slope @ logits, slope.sum()])

    scale, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", tol=1e-12).x
    return (float(scale), float(shift)) if scale > 0 else (1.0, 0.0)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))), np.float64)


def _figures(part: Part, raw: NDArray[np.float64], calibrated: NDArray[np.float64]) -> dict[str, float]:
    """Of the validation part. Calibration was fitted on it, with two numbers: the test part judges it."""
    before, after = _sigmoid(raw), _sigmoid(calibrated)
    figures = {
        "auc": float(auc(part.labels, after, part.weights)),
        "log_loss": float(np.average(log_loss(part.labels, after), weights=part.weights)),
        "calibration_error": float(calibration_error(part.labels, after, part.weights)),
        "calibration_error_before": float(calibration_error(part.labels, before, part.weights)),
    }
    return {f"validation_{name}": value for name, value in figures.items() if np.isfinite(value)}


def _options(task: Task) -> WideDeepOptions:
    return cast(WideDeepOptions, task.options)


def _features(task: Task) -> FeatureSpec:
    return FeatureSpec.from_json(json.loads((task.work / FEATURES_FILE).read_text(encoding="utf-8")))


def _start(folder: Path) -> RankerInfo:
    try:
        return RankerInfo.load(folder)
    except PhaseFailed as error:
        raise TrainingRefused(f"cannot go on from the ranker that serves ({error.detail}): use `start: base`") from None


TRAINER = WideDeepTrainer()
