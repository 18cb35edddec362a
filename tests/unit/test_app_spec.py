"""app.yaml: what a good one gives, and that a broken rule names both of its sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.errors import BadRequest
from serving.schema import AppSpec, find_app, load_app_spec
from tests.endpoint import dense_spec, made_up_spec

RULES = {"engine": "rules"}
LEXICAL = {"engine": "lexical"}
DENSE = {"engine": "dense"}


def write(folder: Path, **changes: Any) -> Path:
    spec = {"name": "teas", "items": {"text": ["ko"]}, "retrieve": {"sources": {"rules": RULES}}, **changes}
    (folder / "app.yaml").write_text(yaml.safe_dump({k: v for k, v in spec.items() if v is not None}), encoding="utf-8")
    return folder


def sources(fusion: dict[str, Any] | None = None, **named: dict[str, Any]) -> dict[str, Any]:
    return {"sources": named, **({"fusion": fusion} if fusion else {})}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Teas!"}, ["name"]),
        ({"name": None}, ["name", "required"]),
        ({"items": {"text": []}}, ["items.text"]),
        ({"items": {"text": ["ko"], "attributes": {"price": "money"}}}, ["items.attributes.price", "keyword"]),
        ({"colour": "red"}, ["colour"]),
        ({"items": {"text": ["ko"], "colour": 1}}, ["items.colour"]),
        ({"retrieve": sources()}, ["retrieve.sources"]),
        ({"retrieve": sources(rules={"engine": "magic"})}, ["retrieve.sources.rules.engine", "lexical"]),
        ({"retrieve": sources(rules={**RULES, "top_k": 0})}, ["retrieve.sources.rules.top_k"]),
        (
            {"retrieve": sources(rules={**RULES, "fields": {"en": 1}})},
            ["retrieve.sources.rules.fields", "en", "items.text", "ko"],
        ),
        ({"retrieve": sources(rules={**RULES, "embedder": "x"})}, ["`embedder`", "`dense`", "`rules`"]),
        ({"retrieve": sources(dense={**DENSE, "aliases": "x.yaml"})}, ["`aliases`", "`rules`", "`dense`"]),
        ({"retrieve": sources(lexical={**LEXICAL, "search": "ann"})}, ["`search`", "`dense`", "`lexical`"]),
        ({"retrieve": sources(dense={**DENSE, "options": {"floor": 1}})}, ["floor", "1"]),
        ({"retrieve": sources(dense={**DENSE, "where": {"shade": "red"}})}, ["where", "shade"]),
        ({"retrieve": sources(dense={**DENSE, "options": {"roof": 1}})}, ["floor", "roof"]),
        (
            {"retrieve": sources({"method": "cascade", "order": ["rules"]}, rules=RULES, lexical=LEXICAL)},
            ["fusion.order", "lexical", "rules"],
        ),
        (
            {"retrieve": sources({"method": "cascade", "order": ["rules", "dense"]}, rules=RULES)},
            ["fusion.order", "dense", "rules"],
        ),
        (
            {"retrieve": sources(a={**DENSE, "max_tokens": 64}, b=DENSE)},
            ["sources.a", "sources.b", "minilm", "`max_tokens`", "64", "96"],
        ),
        (
            {"retrieve": sources(a=DENSE, b={**DENSE, "precision": "int8"})},
            ["sources.a", "sources.b", "minilm", "`precision`", "'auto'", "'int8'"],
        ),
        ({"retrieve": sources({"method": "best"}, rules=RULES)}, ["retrieve.fusion.method", "rrf"]),
        ({"retrieve": sources({"threshold": 2}, rules=RULES)}, ["retrieve.fusion.threshold"]),
        ({"understand": {"engine": "guess"}}, ["understand.engine", "order_lines"]),
        ({"placement": {"units": {"embed": {"replicas": 2}}}}, ["units", "embed", "split", "inline"]),
        (
            {"placement": {"default": "split", "units": {"embed": {"replicas": 2, "autoscaling": {}}}}},
            ["replicas", "autoscaling"],
        ),
        (
            {
                "placement": {
                    "default": "split",
                    "units": {"embed": {"autoscaling": {"min_replicas": 3, "max_replicas": 2}}},
                }
            },
            ["min_replicas (3)", "max_replicas (2)"],
        ),
        ({"placement": {"default": "split", "units": {"cook": {}}}}, ["placement.units"]),
        ({"deadline_s": 0}, ["deadline_s"]),
        ({"evaluation": {"a": {"source": "x", "metric": "luck"}}}, ["evaluation.a.metric"]),
        ({"train": {"words": {"trainer": "contrastive", "canary": True}}}, ["train.words", "canary", "gates"]),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_broken_rule_names_both_sides(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadRequest) as caught:
        load_app_spec(write(tmp_path, **changes))
    for word in (*words, "app.yaml"):
        assert word in caught.value.detail
    assert "\n" not in caught.value.detail


def test_a_file_that_is_no_spec_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"app\.yaml"):
        load_app_spec(tmp_path)
    for text in ("", "just text", "- a\n- b\n", "a: [", "1"):
        (tmp_path / "app.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(BadRequest, match=r"app\.yaml"):
            load_app_spec(tmp_path)


def test_a_good_spec_is_what_was_written_and_survives_its_release(tmp_path: Path) -> None:
    spec = load_app_spec(write(tmp_path, deadline_s=2))
    assert (spec.name, spec.deadline_s, spec.understand.engine, spec.placement.default) == (
        "teas",
        2.0,
        "plain",
        "inline",
    )
    assert spec.text_weights(spec.retrieve.sources["rules"]) == {"ko": 1.0}
    for one in (spec, made_up_spec("teas"), dense_spec("teas")):
        assert AppSpec.model_validate(one.model_dump(mode="json")) == one


def test_an_app_is_found_by_folder_or_by_an_examples_name(tmp_path: Path) -> None:
    assert find_app(str(write(tmp_path))) == tmp_path.resolve()
    assert load_app_spec(find_app("wine-orders")).name == "wine-orders"
    with pytest.raises(BadRequest, match="wine-orders"):
        find_app("no-such-app")
