"""Releases measured with the pipeline that serves: cases of feedback, changes of the catalogue, two releases."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from serving.components.catalogue import build_catalogue
from serving.components.lexical import build_lexical
from serving.fakes import MemoryItemStore
from serving.schema import AppSpec, GateSpec, Item
from training.config import TrainingConfig
from training.dataset import DatasetInfo, Example
from training.dataset.example import save_info, write_examples
from training.evaluate import metrics_of, render_recalls
from training.evidence import compare
from training.gates import judge
from training.measure import FEEDBACK, CaseSet, Measured, feedback_set, load_sets, measure, measure_release
from training.progress import Progress

SPEC = AppSpec.model_validate(
    {
        "name": "shop",
        "items": {"source": "items.jsonl", "text": ["name"]},
        "retrieve": {"sources": {"words": {"engine": "lexical"}}, "fusion": {"method": "weighted"}},
        "evaluation": {"test": {"source": "test.jsonl", "k": 5}},
    }
)
ITEMS = [Item("1", {"name": "red apple"}), Item("2", {"name": "green pear"}), Item("3", {"name": "yellow quince"})]
PROGRESS = Progress("shop", Console(quiet=True))


def folders(root: Path, items: list[Item]) -> dict[str, Path]:
    made = {name: root / name for name in ("catalogue", "retrieve.words")}
    build_catalogue(made["catalogue"], items, {})
    build_lexical(made["retrieve.words"], items, {"name": 1.0}, {}, lambda done: None)
    return made


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    examples = [
        Example("apple", "1", 1, slice="en"),
        Example("apple", "2", 0, slice="en"),
        Example("fruit", "1", 1, slice="en"),
        Example("quince", "3", 1, slice="ko"),
        Example("fruit", "3", 1, slice="en"),
    ]
    write_examples(folder / "test.jsonl", examples)
    save_info(folder, DatasetInfo("f", {}, unseen_items=("3",)))
    return folder


def test_feedback_makes_a_case_per_query(dataset: Path) -> None:
    cases = {case.query: case for case in feedback_set(dataset).cases}
    assert list(cases) == ["apple", "fruit", "quince"]
    assert {query: case.accept for query, case in cases.items()} == {
        "apple": {"1"},
        "fruit": {"1", "3"},
        "quince": {"3"},
    }
    assert [(case.slice, case.also) for case in cases.values()] == [("en", ()), ("en", ()), ("ko", ("new items",))]


def test_a_release_is_measured_on_files_and_on_feedback(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"query": "pear", "accept": ["2"]}\n', encoding="utf-8")
    config, release = TrainingConfig.from_env(tmp_path), folders(tmp_path, ITEMS)
    sets = {**load_sets(SPEC.evaluation, tmp_path), FEEDBACK: feedback_set(dataset)}
    reports = measure_release(Measured(SPEC, release), config, sets, PROGRESS)
    assert reports["test"].overall.accuracy == 1.0
    assert reports["test"].k == 5
    assert {name: m.count for name, m in reports[FEEDBACK].slices.items()} == {"en": 2, "ko": 1, "new items": 1}
    assert reports[FEEDBACK].slices["new items"].accuracy == 1.0
    assert measure(SPEC, tmp_path, release, config, SPEC.evaluation, PROGRESS)["test"].key == reports["test"].key
    figures = metrics_of("test", reports["test"])
    assert figures["test_recall_at_5"] == figures["test_accuracy"] == 1.0
    assert "R@5" in render_recalls({"words": reports["test"]}, "shop")


def test_stable_knows_the_items_that_came_after_it(tmp_path: Path, dataset: Path) -> None:
    config = TrainingConfig.from_env(tmp_path)
    store = MemoryItemStore()
    seq = store.upsert("shop", ITEMS[:2])
    old = folders(tmp_path / "old", ITEMS[:2])
    store.upsert("shop", ITEMS[2:])
    store.delete("shop", ["2"])
    sets: dict[str, CaseSet] = {FEEDBACK: feedback_set(dataset)}
    blind = measure_release(Measured(SPEC, old), config, sets, PROGRESS)
    stable = measure_release(Measured(SPEC, old, seq, store), config, sets, PROGRESS)
    new = measure_release(Measured(SPEC, folders(tmp_path / "new", [ITEMS[0], ITEMS[2]])), config, sets, PROGRESS)
    assert blind[FEEDBACK].slices["ko"].accuracy == 0.0
    assert stable[FEEDBACK].slices["ko"].accuracy == 1.0
    gates = {FEEDBACK: GateSpec(require="no_worse")}
    assert judge(gates, compare(new, stable), seed=0).passed


def test_records_reach_the_cases(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    records = [{"metrics": {"acidity": 4.0}}, {"metrics": {"acidity": 1.0}}]
    write_examples(
        folder / "test.jsonl", [Example("", item, 1, record=r) for item, r in zip("ab", records, strict=True)]
    )
    save_info(folder, DatasetInfo("f", {}))
    assert [dict(case.record) for case in feedback_set(folder).cases] == records
