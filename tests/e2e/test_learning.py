"""The learning loop on a running platform: users correct what they are shown, a training run starts by itself, its
candidate passes the gates, is tried on their own traffic and promoted; and what is learnt from poisoned feedback stops
at the gates.

As `scripts/bench learning`, which does it with the encoder of the example: here with its first two layers alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.learning import Learning, learning_app
from bench.rollouts import Rollouts
from registry.database import open_database
from registry.derive import changed_spec
from registry.mlflow_store import MlflowStore
from tests.browser import ModelPage, chromium
from tests.platform import Platform, running
from training.models import model_folder
from training.runs import Runs

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]

APP = "wine-orders"
SMALL: dict[str, Any] = {
    "retrieve.sources.dense.embedder": "encoder",
    "train.embedder.component": "embedder.encoder",
    "train.embedder.data": {"extra": "pairs.py --per-class 20", "unseen_items_ratio": 0.0},
    "train.embedder.trigger": {"new_events": 300},
    "train.embedder.options.max_steps": 120,
    "train.embedder.options.evaluate_every": 120,
    "train.embedder.options.learning_rate": 5.0e-4,
    "evaluation": {"test": {"source": "evaluation/test.jsonl", "metric": "accuracy"}},
    # Two layers that learnt say "I do not know" more often than two that always guess: not what is judged here.
    "rollout.guards.abstained": None,
    "train.embedder.gates": {
        "feedback": {"metric": "success_at_k", "require": "better"},
        "test": {"metric": "accuracy", "require": "no_worse", "margin": 0.05, "slice_margin": None},
    },
}


def small_encoder(folder: Path) -> None:
    """The first two layers of MiniLM, in the sentence-transformers format."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder("minilm")), device="cpu")
    bert = model[0].auto_model
    bert.encoder.layer = bert.encoder.layer[:2]
    bert.config.num_hidden_layers = 2
    model.save(str(folder), create_model_card=False)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = learning_app(tmp_path_factory.mktemp("app") / APP)
    small_encoder(folder / "encoder")
    file = folder / "app.yaml"
    spec = changed_spec(yaml.safe_load(file.read_text(encoding="utf-8")), SMALL)
    file.write_text(yaml.safe_dump(spec, allow_unicode=True, sort_keys=False), encoding="utf-8")
    with running([folder], "--learner", PALATE_DRILLS="1") as up:
        yield up


def test_feedback_becomes_a_better_release_and_poison_does_not(platform: Platform, tmp_path: Path):
    database = open_database(f"sqlite:///{platform.home.root / 'palate.db'}")
    store, runs = MlflowStore(platform.mlflow_url), Runs(database)
    rollouts = Rollouts(platform.url, platform.key, store, APP)
    learning = Learning(platform.url, platform.key, rollouts, lambda: runs.of(APP, 5))

    learnt = learning.learn()
    assert learnt.status == "published", learnt
    kinds = [entry["kind"] for entry in rollouts.entries(learnt.rollout)]
    assert "promoted" in kinds, rollouts.story(learnt.rollout)
    assert store.get(APP, "stable").version == learnt.version
    assert learnt.after_ratio > learnt.before_ratio + 0.2, learnt
    assert learnt.failed == 0

    poisoned = learning.learn(poison=True)
    assert poisoned.status == "gates-failed", poisoned
    stopped = store.get(APP, poisoned.version or 0)
    assert not stopped.aliases
    assert "feedback" in stopped.tags["palate.gates_why"]
    assert store.get(APP, "stable").version != stopped.version
    assert poisoned.failed == 0
    database.close()

    pictures = Path(os.environ.get("PALATE_TEST_SCREENSHOTS") or tmp_path)
    with chromium() as driver:
        page = ModelPage(driver, platform.mlflow_url, APP)
        page.open()
        page.screenshot(pictures / "learning.png")
