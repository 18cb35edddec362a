"""What people read in the MLflow UI stays within what MLflow takes."""

from __future__ import annotations

from registry.mlflow_layout import (
    MAX_DESCRIPTION_CHARS,
    MAX_PARAMS,
    MAX_VALUE_CHARS,
    description,
    mlflow_key,
    spec_params,
)
from registry.schema import ComponentRef, Release


def test_keys_lose_what_mlflow_refuses() -> None:
    assert mlflow_key("recall@10") == "recall_at_10"
    assert mlflow_key("정확도 (top-1)") == "정확도 _top-1_"


def test_a_spec_is_flattened_to_its_leaves() -> None:
    spec = {"name": "x", "retrieve": {"fusion": {"method": "rrf"}, "fields": ["a", "b"]}, "rank": None, "on": False}
    assert spec_params(spec) == {
        "name": "x",
        "retrieve.fusion.method": "rrf",
        "retrieve.fields": '["a", "b"]',
        "on": "false",
    }


def test_a_large_spec_is_cut_to_what_mlflow_takes() -> None:
    params = spec_params({"words": {f"w{n}": "x" * 10_000 for n in range(1000)}})
    assert len(params) == MAX_PARAMS
    assert {len(v) for v in params.values()} == {MAX_VALUE_CHARS}


def test_the_description_names_parts_metrics_and_lineage() -> None:
    parts = tuple(ComponentRef(f"part.{n}", "rules", f"{n:064x}", 2_500_000) for n in range(200))
    release = Release("wines", {}, parts[:1], 7, "a" * 64, {"recall@10": 0.51234}, {"commit": "made-up"})
    text = description(release)
    for expected in ("**wines**", "sequence 7", "| part.0 | rules | 2.5 |", "| recall@10 | 0.5123 |", "| made-up |"):
        assert expected in text
    assert len(description(Release("wines", {}, parts, 7, "a" * 64))) == MAX_DESCRIPTION_CHARS
