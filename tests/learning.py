"""A tiny trainer, and an app that learns with it: everything of a run is real but the model.

The model counts which item was right how often, over all queries; what it says of a case is that share. It learns in a
few steps with a checkpoint each, so that it can be killed in between.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from registry.database import migrate, open_database
from registry.memory_store import MemoryStore
from registry.mlflow_store import MlflowStore
from registry.ports import ReleaseStore
from serving.schema import AppSpec
from serving.store import SqlItemStore
from tests.endpoint import build_release, config_of, made_up_items, made_up_spec, quiet_progress
from training.config import TrainingConfig
from training.dataset.example import read_examples
from training.evidence import Evidence, Scored
from training.fakes import MemoryTracking
from training.job.cluster import Where
from training.order import Means, Order
from training.ports import Loop, NewComponent, Task, Trained, Trainer
from training.progress import Progress
from training.trainers import find_trainer
from training.wiring import Wiring

APP = "teas"
STEPS = 4
RANKER = "ranker.counts"
ITEMS = [item.id for item in made_up_items()]


class CountingOptions(BaseModel):
    """`kill_in_step`: the process dies there, once. `inverted`: learn the opposite of what is right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inverted: bool = False
    kill_in_step: int = 0


class CountingTrainer:
    name = "wide_deep"
    options: type[BaseModel] = CountingOptions

    def component(self, _spec: AppSpec) -> str:
        return RANKER

    def search_space(self, _options: BaseModel) -> Mapping[str, tuple[Any, ...]]:
        return {"inverted": (False, True, False)}

    def prepare(self, task: Task) -> None:
        (task.work / "prepared").write_text("yes")

    def loop(self, task: Task, loop: Loop) -> None:
        options = task.options
        assert isinstance(options, CountingOptions)
        assert (task.work / "prepared").exists()
        examples = list(read_examples(task.dataset / "train.jsonl"))
        start = loop.restore()
        state = json.loads((start / "state.json").read_text()) if start else {"step": 0, "counts": {}}
        if start is None and task.start is not None:
            state["counts"] = json.loads((task.start / "counts.json").read_text())
        counts: Counter[str] = Counter(state["counts"])
        loop.total(STEPS)
        for step in range(int(state["step"]) + 1, STEPS + 1):
            if step == options.kill_in_step and start is None:
                os.kill(os.getpid(), signal.SIGKILL)
            for example in examples[step - 1 :: STEPS]:
                counts[example.item] += bool(example.label) != options.inverted

            def save(folder: Path, step: int = step) -> None:
                (folder / "state.json").write_text(json.dumps({"step": step, "counts": counts}, sort_keys=True))

            loop.report(step, {"validation_loss": 1.0 / step}, save)

    def finish(self, task: Task, saved: Path) -> Trained:
        folder = task.work / "component"
        folder.mkdir(exist_ok=True)
        counts = json.loads((saved / "state.json").read_text())["counts"]
        (folder / "counts.json").write_text(json.dumps(counts, sort_keys=True))
        return Trained(components=(NewComponent(RANKER, "ranker", folder),), metrics={"items": float(len(counts))})

    def evidence(self, task: Task, component: Path | None) -> Evidence:
        counts = json.loads((component / "counts.json").read_text()) if component else {}
        most = max(counts.values(), default=0) + 2
        cases = list(read_examples(task.dataset / "test.jsonl"))
        probabilities = np.array([(counts.get(case.item, 0) + 1) / most for case in cases])
        return Scored(np.array([case.label for case in cases]), probabilities, key=f"{len(cases)}")


def find_counting(name: str) -> Trainer:
    return CountingTrainer() if name == "wide_deep" else find_trainer(name)


def train_section(**changes: Any) -> dict[str, Any]:
    """`taste` of the app `teas`; `changes` replace its keys."""
    gate = {"metric": "log_loss", "require": "better", "slice_margin": None}
    data = {"min_examples": 5, "extra": "examples.jsonl", "feedback": False, "unseen_items_ratio": 0}
    return {"trainer": "wide_deep", "component": RANKER, "data": data, "gates": {"feedback": gate}, **changes}


def learning_spec(**changes: Any) -> AppSpec:
    return made_up_spec(APP, train={"taste": train_section(**changes)})


def write_made_up_examples(folder: Path, liked: Sequence[str], count: int = 240) -> None:
    """Everybody likes `liked` and nothing else, and says so at all times alike."""
    lines = []
    for n in range(count):
        item = ITEMS[n % 12]
        label = int(item in liked)
        lines.append(json.dumps({"query": f"made-up query {n}", "item": item, "label": label, "at_s": 1000.0 + n}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")


class Classroom:
    """A home with the catalogue of `teas`, its first release as stable, and the means to train it, without Ray."""

    def __init__(self, home: Path, releases: ReleaseStore | None = None, mlflow_uri: str = "", url: str = "") -> None:
        self.home = home
        config = config_of(home)
        self.config = TrainingConfig(config.model_copy(update={"database_url": url}))
        migrate(self.config.serving.database)
        self.database = open_database(self.config.serving.database)
        self.releases = releases or (MlflowStore(mlflow_uri) if mlflow_uri else MemoryStore())
        self.items = SqlItemStore(self.database)
        self.folder = home / "app"
        self.tracked: list[MemoryTracking] = []
        self._mlflow_uri = mlflow_uri
        write_made_up_examples(self.folder, ITEMS[:4])

    def seed(self) -> None:
        self.items.upsert(APP, made_up_items())
        release = build_release(self.home, self.releases, learning_spec(), self.items).release
        version = next(v for v in self.releases.versions(APP) if v.release.digest == release.digest)
        self.releases.set_alias(APP, "stable", version.version)

    def means(self, progress: Progress | None = None, **changes: Any) -> Means:
        wiring = Wiring(self.config, self.database, self.releases, self._mlflow_uri, Where(plain=True), find_counting)
        means = wiring.means(APP, progress or quiet_progress(APP))
        if not self._mlflow_uri:
            means = replace(means, track=lambda *_: self._track())
        return replace(means, **changes)

    def order(self, spec: AppSpec | None = None, **changes: Any) -> Order:
        return Order(self.folder, spec or learning_spec(), **changes)

    def _track(self) -> MemoryTracking:
        self.tracked.append(MemoryTracking())
        return self.tracked[-1]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Classroom]:
    """With releases in memory."""
    made = Classroom(tmp_path)
    made.seed()
    yield made
    made.database.close()


def main() -> None:
    """A run in a process of its own: HOME DATABASE_URL MLFLOW_URI SPEC-AS-JSON."""
    from training.run import train

    home, url, uri, spec = sys.argv[1:5]
    room = Classroom(Path(home), None, uri, url)
    result = train(room.order(AppSpec.model_validate_json(spec), why="in a process"), room.means())
    print(json.dumps({"status": result.status, "run": result.run.id, "why": result.why}))


if __name__ == "__main__":
    main()
