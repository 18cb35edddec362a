"""What the wide_deep trainer refuses, by name, what it leaves out, and what it hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.components.ranker import OnnxRanker
from tests.wide_deep import SMALL, spec_of, task_in, taste, train
from training.dataset.example import Example
from training.errors import DatasetInvalid, TrainingRefused
from training.trainers import checked_options
from training.wide_deep.options import WideDeepOptions
from training.wide_deep.trainer import TRAINER


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embeddings": {"user": 4, "item": 4}}, "embeddings"),
        ({"embeddings": {"user": 8, "item": 4, "item.category": 4}}, "embeddings or hidden"),
        ({"crosses": [["user"]]}, "crosses"),
        ({"numeric": ["item.price"]}, "numeric"),
        ({"hidden": [9]}, "embeddings or hidden"),
    ],
)
def test_going_on_with_other_features_is_refused(
    tmp_path: Path, tasteful_start: Path, changes: Any, named: str
) -> None:
    with pytest.raises(TrainingRefused, match=named) as refused:
        train(task_in(tmp_path, taste(100), start=tasteful_start, **changes))
    assert "start: base" in str(refused.value)


@pytest.fixture(scope="module")
def tasteful_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(task_in(tmp_path_factory.mktemp("s"), taste(100), epochs=1)).components[0].folder


def test_going_on_from_what_is_no_ranker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match="start: base"):
        TRAINER.prepare(task_in(tmp_path, taste(100), start=tmp_path))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crosses": [["user", "shop"]]}, "'shop'"),
        ({"crosses": [["user", "user"]]}, "with itself"),
        ({"crosses": [["user"], ["user"]]}, "options.crosses"),
        ({"embeddings": {"price_band": 4}}, "'price_band'"),
        ({"embeddings": {}, "numeric": []}, "both empty"),
        ({"embeddings": {"user": 0}}, "embeddings.user"),
        ({"numeric": ["price"]}, "numeric.0"),
        ({"bands": {"b": {"of": "item.price", "count": 1}}}, "bands.b.count"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning_rat": 1.0}, "learning_rat"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(TrainingRefused, match=r"train\.ranker\.options") as refused:
        checked_options("ranker", spec_of({**SMALL, **options}).train["ranker"], TRAINER)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"numeric": ["item.prise"]}, {"crosses": [["record.slot"]]}, {"numeric": ["item.category"]}]
)
def test_a_feature_that_no_example_has_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TrainingRefused, match=r"item\.prise|record\.slot|item\.category") as refused:
        TRAINER.prepare(task_in(tmp_path, taste(50), **options))
    assert "'category', 'name', 'price'" in str(refused.value)


def test_examples_of_items_that_are_gone_are_left_out(tmp_path: Path) -> None:
    gone = [Example("", "gone", 1, user="u1")] * 30
    task = task_in(tmp_path, [*taste(200), *gone], taste(50, 1), epochs=1)
    assert train(task).metrics["train_examples"] == 200
    with pytest.raises(TrainingRefused, match="nothing to learn from"):
        TRAINER.prepare(task_in(tmp_path / "b", gone))


def test_a_broken_items_file_is_named_by_line(tmp_path: Path) -> None:
    task = task_in(tmp_path, taste(50))
    task.items.write_text('{"id": "a", "fields": {}}\n{"id": "b"}\n', encoding="utf-8")
    with pytest.raises(DatasetInvalid, match=r"items\.jsonl, line 2"):
        TRAINER.prepare(task)


def test_the_component_it_makes_has_the_name_that_app_yaml_gives(tmp_path: Path) -> None:
    task = task_in(tmp_path, taste(50), epochs=1)
    assert TRAINER.component(task.spec) == "rank"
    component = train(task).components[0]
    assert (component.name, component.role, component.needs) == ("rank", "ranker", ())
    assert component.fingerprint == OnnxRanker(component.folder).fingerprint
    assert sorted(p.name for p in component.folder.iterdir()) == ["ranker.json", "ranker.onnx"]


def test_the_search_space_varies_options_there_are(tmp_path: Path) -> None:
    options = WideDeepOptions()
    assert set(TRAINER.search_space(options)) <= set(WideDeepOptions.model_fields)
