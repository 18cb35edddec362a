"""Contrastive training on a model that the test makes: it learns, goes on after a kill, and gives the same twice."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registry.content import digest_folder
from serving.components.embedder import EmbedderInfo, fingerprint
from serving.retrieve.onnx_embedder import OnnxEmbedder
from serving.retrieve.torch_embedder import TorchEmbedder
from serving.schema import AppSpec
from tests.tiny_embedder import foreign, make_model, make_task, names
from training.contrastive.encoder import Encoder
from training.contrastive.loop import Worker, chosen, load_state, rate_at
from training.contrastive.options import ContrastiveOptions
from training.contrastive.pairs import Pair as Pairing
from training.contrastive.trainer import TRAINER
from training.contrastive.validation import Validation
from training.errors import ExportRefused, TrainingRefused
from training.export import export_embedder
from training.job.loop import PlainLoop
from training.ports import OBJECTIVE, StopTraining, Task, Trained

WORKERS_LIMIT_S = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("app") / "tiny-model")


class Watch:
    """Hears what a loop tells; says stop once `stop_at` was saved."""

    def __init__(self, stop_at: int = 0) -> None:
        self.reports: list[dict[str, Any]] = []
        self.totals: list[int] = []
        self.stop_at = stop_at

    def __call__(self, event: Any) -> None:
        if event["kind"] == "report":
            self.reports.append(event)
        elif event["kind"] == "total":
            self.totals.append(event["steps"])

    def stop(self) -> bool:
        return bool(self.reports) and bool(self.stop_at) and self.reports[-1]["step"] >= self.stop_at

    def of(self, metric: str) -> list[float]:
        return [report["metrics"][metric] for report in self.reports if metric in report["metrics"]]


def train(task: Task, watch: Watch | None = None) -> Trained:
    watch = watch or Watch()
    TRAINER.prepare(task)
    loop = PlainLoop(task.work / "checkpoints", on=watch, stop=watch.stop)
    TRAINER.loop(task, loop)
    saved = loop.restore()
    assert saved is not None
    return TRAINER.finish(task, saved)


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(loaded.encode(texts, normalize_embeddings=True, show_progress_bar=False))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mnrl"},
        {"method": "mnrl", "precision": "bf16", "symmetric": True, "hard_negatives": 0},
        {"method": "cached_mnrl", "mini_batch_size": 6},
        {"method": "mnrl", "matryoshka": [16, 8]},
        {"method": "cached_mnrl", "matryoshka": [8]},
        {"method": "distill", "epochs": 20},
        {"method": "mnrl", "accumulate": 2, "epochs": 20},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_what_it_learns_holds_for_items_it_never_saw(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    watch = Watch()
    trained = train(make_task(model, tmp_path / "task", **options), watch)
    assert watch.totals == [watch.reports[-1]["step"]]
    first, last = watch.reports[0]["metrics"], watch.reports[-1]["metrics"]
    assert last["validation_loss"] < first["validation_loss"]
    assert last[OBJECTIVE] == 1 - last["validation_mrr"] < first[OBJECTIVE]
    assert first["validation_recall_at_1"] < 0.4
    assert trained.metrics["validation_recall_at_1"] > first["validation_recall_at_1"] + 0.3
    assert trained.metrics["validation_mrr"] == max(watch.of("validation_mrr")[1:])
    assert list(trained.models) == ["tiny-model"]


def test_a_model_of_no_numbers_is_the_worst_and_its_training_ends(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        served, query_prompt, document_prompt = 4, "", ""

        def encode(self, texts: list[str], prompt: str) -> np.ndarray:
            return np.full((len(texts), 4), np.nan, np.float32)

    task = make_task(model, tmp_path / "task")
    texts = names()
    pairs = [Pairing(foreign(text), text, rights=frozenset({text})) for text in texts]
    assert isinstance(task.options, ContrastiveOptions)
    assert set(Validation(pairs, texts, task.options, 0)._ranks(Broken())) == {len(texts)}  # type: ignore[arg-type]
    monkeypatch.setattr(
        "training.contrastive.loop.make_loss",
        lambda *_, **__: lambda columns, targets: torch.tensor(float("nan"), requires_grad=True),
    )
    with pytest.raises(TrainingRefused, match=r"step 1 is nan: lower options\.learning_rate"):
        train(task)


def test_killed_and_continued_is_as_undisturbed(model: Path, tmp_path: Path) -> None:
    """With dropout: what it drops follows from the step."""
    whole = train(make_task(model, tmp_path / "whole", epochs=5, evaluate_every=4))
    task, watch = make_task(model, tmp_path / "torn", epochs=5, evaluate_every=4), Watch(stop_at=8)
    with pytest.raises(StopTraining):
        train(task, watch)
    assert watch.reports[-1]["step"] == 8
    again = Watch()
    torn = train(task, again)
    assert again.reports[0]["step"] == 12
    assert torn.metrics == whole.metrics
    assert digest_folder(torn.models["tiny-model"]) == digest_folder(whole.models["tiny-model"])


def test_the_same_task_gives_the_same_component_and_another_seed_another(model: Path, tmp_path: Path) -> None:
    made = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained = train(make_task(model, tmp_path / name, seed, max_steps=3))
        export_embedder(trained.models["tiny-model"], tmp_path / f"{name}-out", names(), torch_weights=True)
        made[name] = digest_folder(tmp_path / f"{name}-out")
    assert made["a"] == made["b"] != made["c"]


def test_a_merged_lora_is_the_model_that_was_trained(model: Path, tmp_path: Path) -> None:
    task, watch = make_task(model, tmp_path / "task", lora={"rank": 4, "dropout": 0.1}, evaluate_every=5), Watch()
    trained = train(task, watch)
    assert min(watch.of("train_loss")[-3:]) < watch.of("train_loss")[0]
    assert not list(trained.models["tiny-model"].rglob("adapter*"))
    encoder = Encoder(model, task.options, "cpu", 32)  # type: ignore[arg-type]
    assert all("lora_" in name for name in encoder.learning())
    weights, _ = chosen(load_state(PlainLoop(task.work / "checkpoints").restore()))  # type: ignore[arg-type]
    encoder.restore(weights)
    texts = [*names(), *map(foreign, names())]
    np.testing.assert_allclose(vectors(trained.models["tiny-model"], texts), encoder.encode(texts), atol=1e-5)
    assert np.abs(vectors(model, texts) - encoder.encode(texts)).max() > 0.01


def test_a_dimension_that_was_trained_is_served(model: Path, tmp_path: Path) -> None:
    trained = train(make_task(model, tmp_path / "task", matryoshka=[8], dimension=8, max_steps=10))
    folder = trained.models["tiny-model"]
    info = export_embedder(folder, tmp_path / "cut", names(), torch_weights=True)
    assert info.dimension == EmbedderInfo.load(tmp_path / "cut").dimension == 8
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "truncate_dim": None}))
    export_embedder(folder, tmp_path / "whole", names())
    cut = OnnxEmbedder(tmp_path / "cut", "float32", threads=1).embed(names())
    whole = OnnxEmbedder(tmp_path / "whole", "float32", threads=1).embed(names())[:, :8]
    assert cut.shape == (64, 8)
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(TorchEmbedder(tmp_path / "cut", "cpu").embed(names()), cut, atol=1e-4)
    assert fingerprint(tmp_path / "cut", "float32") != fingerprint(tmp_path / "whole", "float32")
    # The next training goes on from it, and serves the same dimension.
    task = replace(make_task(model, tmp_path / "next", max_steps=2), start=tmp_path / "cut")
    assert export_embedder(train(task).models["tiny-model"], tmp_path / "again", names()).dimension == 8


def test_only_what_is_not_frozen_changes(model: Path, tmp_path: Path) -> None:
    task = make_task(model, tmp_path / "task", train_layers=1, max_steps=2)
    encoder = Encoder(model, task.options, "cpu", 32)  # type: ignore[arg-type]
    assert {name.split("encoder.layer.")[1][0] for name in encoder.learning()} == {"1"}
    free = make_task(model, tmp_path / "other", freeze_embeddings=True)
    learning = Encoder(model, free.options, "cpu", 32).learning()  # type: ignore[arg-type]
    assert any("layer.0" in name for name in learning)
    assert not any("word_embeddings" in name for name in learning)


def test_distilling_leaves_documents_where_they_are(model: Path, tmp_path: Path) -> None:
    moved = {}
    for method in ("distill", "mnrl"):
        task = make_task(model, tmp_path / method, method=method, keep="last", dropout=0.0, hard_negatives=0)
        folder = train(task).models["tiny-model"]
        before, after = vectors(model, names()), vectors(folder, names())
        moved[method] = float((1 - (before * after).sum(1)).mean())
    assert moved["distill"] < 0.2 * moved["mnrl"]


def part_of_two(tasks: dict[str, Task], rank: int, folder: Path) -> None:
    """One of two workers, a process of its own: importing torch is what takes time, so it trains them all."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, task in tasks.items():
        TRAINER.loop(task, Pair(rank, folder / f"{name}-two"))
    torch.distributed.destroy_process_group()


class Pair:
    """A loop of two workers: rank 0 saves."""

    world, device = 2, "cpu"

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self._folder = rank, folder

    def restore(self) -> None:
        return None

    def total(self, steps: int) -> None:
        pass

    def report(self, step: int, metrics: Any, save: Any = None) -> None:
        if save and self.rank == 0:
            self._folder.mkdir(exist_ok=True)
            save(self._folder)


def test_two_workers_train_what_one_does(model: Path, tmp_path: Path) -> None:
    """Without dropout and hard negatives: items are gathered from both, and gradients averaged."""
    options: dict[str, Any] = {
        "dropout": 0.0,
        "hard_negatives": 0,
        "keep": "last",
        "max_steps": 4,
        "learning_rate": 1e-3,
        "mini_batch_size": 5,
    }
    methods = ("mnrl", "cached_mnrl", "distill")
    tasks = {name: make_task(model, tmp_path / name, method=name, **options) for name in methods}
    for task in tasks.values():
        TRAINER.prepare(task)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=part_of_two, args=(tasks, rank, tmp_path)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WORKERS_LIMIT_S)
        assert worker.exitcode == 0
    for name, task in tasks.items():
        loop = PlainLoop(task.work / "checkpoints")
        TRAINER.loop(task, loop)
        encoder = Encoder(model, task.options, "cpu", 32)  # type: ignore[arg-type]
        texts = [*names(), *map(foreign, names())]
        vectors_of = [encoder.encode(texts)]
        for folder in (loop.restore(), tmp_path / f"{name}-two"):
            encoder.restore(load_state(folder)["model"])  # type: ignore[arg-type]
            vectors_of.append(encoder.encode(texts))
        # Vectors, not weights: Adam moves a weight whose gradient is nought by the sign of its last digit.
        start, one, two = vectors_of
        assert np.abs(one - two).mean() < 0.05 * np.abs(one - start).mean(), name


def test_what_cannot_be_trained_is_refused(model: Path, tmp_path: Path) -> None:
    task = make_task(model, tmp_path / "task")
    with pytest.raises(TrainingRefused, match="torch weights"):
        TRAINER.prepare(replace(task, start=tmp_path))
    (tmp_path / "task" / "train.jsonl").write_text('{"query": "a", "item": "gone"}\n')
    with pytest.raises(TrainingRefused, match="0 pairs"):
        TRAINER.prepare(task)
    wide = make_task(model, tmp_path / "wide", matryoshka=[64])
    with pytest.raises(TrainingRefused, match="32 dimensions"):
        TRAINER.loop(wide, PlainLoop(tmp_path / "a"))
    half = make_task(model, tmp_path / "half", precision="fp16")
    with pytest.raises(TrainingRefused, match="needs a GPU"):
        TRAINER.loop(half, PlainLoop(tmp_path / "b"))
    odd = make_task(model, tmp_path / "odd", batch_size=15)
    with pytest.raises(TrainingRefused, match="2 workers cannot share"):
        Worker(Encoder(model, odd.options, "cpu", 32), *_material(odd), Pair(0, tmp_path))  # type: ignore[arg-type]


def _material(task: Task) -> tuple[Any, Any]:
    from training.contrastive.loop import Material
    from training.contrastive.pairs import read_items, read_pairs
    from training.contrastive.validation import Validation

    texts = read_items(task.items, ("name",))
    pairs = read_pairs(task.dataset / "train.jsonl", texts).pairs
    options: Any = task.options
    return Material(pairs, Validation([], [], options, 0), {}, 0), options


def test_the_component_is_the_only_embedder_that_reads_text(model: Path, tmp_path: Path) -> None:
    spec = make_task(model, tmp_path / "task").spec
    assert TRAINER.component(spec) == "embedder.tiny-model"
    raw = spec.model_dump(mode="json")
    raw["retrieve"]["sources"]["other"] = {"engine": "dense", "embedder": "minilm"}
    with pytest.raises(TrainingRefused, match="name one of them"):
        TRAINER.component(AppSpec.model_validate(raw))
    raw["retrieve"]["sources"] = {"words": {"engine": "lexical"}}
    with pytest.raises(TrainingRefused, match="it has none"):
        TRAINER.component(AppSpec.model_validate(raw))


def test_the_rate_rises_and_falls_in_lines() -> None:
    rates = [rate_at(step, 10, 0.2) for step in range(1, 11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 8)
    assert rate_at(1, 1, 0.0) == 1.0


def test_an_adapter_beside_the_weights_is_not_exported(model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportRefused, match="merge it"):
        export_embedder(tmp_path / "model", tmp_path / "out", [])
