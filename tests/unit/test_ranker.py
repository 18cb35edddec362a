"""What a ranker reads: codes, numbers, bands and hashed crosses; and a component that cannot be read. No torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from serving.components.rank_features import Band, FeatureEncoder, FeatureSpec, Numeric, category_of
from serving.components.ranker import OnnxRanker, RankerInfo
from serving.errors import PhaseFailed
from serving.schema import Item

SPEC = FeatureSpec(
    vocabularies={"user": ("u1", "u2"), "item": ("a",), "item.category": ("chicken", "rice"), "record.card": ("true",)},
    bands={"price_band": Band("item.price", (10.0, 20.0))},
    numeric={"item.price": Numeric(10.0, 5.0), "record.age": Numeric(12.0, 2.0)},
    embedded=("user", "price_band"),
    crosses=(("user",), ("user", "item.category")),
    buckets=1000,
    seed=3,
)
ENCODER = FeatureEncoder(SPEC)


def item(name: str = "a", **attributes: object) -> Item:
    return Item(name, {"name": "made up"}, attributes)


def test_known_values_have_their_codes_and_others_the_code_of_the_unknown() -> None:
    rows = ENCODER.items([item(category="rice"), item("new", category="noodles"), item("new")])
    assert rows.codes[:, 1].tolist() == [1, 0, 0]
    assert rows.codes[:, 2].tolist() == [2, 0, 0]
    asked = ENCODER.requests(["u2", "", "stranger"], [{"card": True}, {"card": False}, {}])
    assert asked.codes[:, 0].tolist() == [2, 0, 0]
    assert asked.codes[:, 3].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "true"), (None, ""), ("x", "x")]
)
def test_a_value_is_one_category_however_the_catalogue_gives_it_back(value: object, text: str) -> None:
    assert category_of(value) == text


def test_numbers_are_standardised_cut_off_and_marked_where_missing() -> None:
    prices: list[object] = [10, 15.0, 1e9, None, "dear", math.nan, math.inf, 10**400]
    numbers = ENCODER.items([item(price=p) for p in prices]).numbers
    assert numbers[:, 0].tolist() == [0, 1, 5, 0, 0, 0, 0, 0]
    assert numbers[:, 2].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert not numbers[:, [1, 3]].any(), "the columns of the request are the request's"


def test_bands_are_cut_at_their_edges() -> None:
    codes = ENCODER.items([item(price=p) for p in (9.9, 10, 20, 1000, None)]).codes[:, 4]
    assert codes.tolist() == [1, 2, 3, 3, 0]
    assert SPEC.rows("price_band") == 4


def test_a_field_stands_in_for_an_attribute_that_is_missing() -> None:
    assert ENCODER.items([Item("a", {"category": "rice"}, {})]).codes[0, 2] == 2


def test_both_sides_join_to_what_each_said() -> None:
    items = ENCODER.items([item(category="chicken", price=15), item("new")])
    joined = ENCODER.requests(["u1"], [{"age": 14}]) | items
    assert joined.codes.tolist() == [[1, 1, 1, 0, 2], [1, 0, 0, 0, 0]]
    assert joined.numbers.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert ENCODER.embedded(joined.codes).tolist() == [[1, 2], [1, 0]]


def test_crosses_hash_to_the_same_rows_on_every_machine_and_release() -> None:
    codes = np.array([[1, 0, 1, 0, 0], [1, 0, 2, 0, 0], [2, 0, 1, 0, 0]], np.int32)
    rows = ENCODER.wide(codes)
    assert rows[0, 0] == rows[1, 0] != rows[2, 0]
    assert len(set(rows[:, 1].tolist())) == 3
    assert rows.tolist() == [[902, 409], [902, 787], [374, 992]]
    wider = np.arange(20_000, dtype=np.int32)[:, None] * np.array([[1, 0, 0, 0, 0]], np.int32)
    counts = np.bincount(ENCODER.wide(wider)[:, 0], minlength=1000)
    assert counts.min() > 0, "20,000 codes reach each of 1,000 buckets"
    assert counts.max() < 50


def test_the_specification_survives_a_round_trip_and_its_fingerprint_tells_meanings_apart(tmp_path: Path) -> None:
    RankerInfo(SPEC, 1.5, -0.25).save(tmp_path)
    assert RankerInfo.load(tmp_path) == RankerInfo(SPEC, 1.5, -0.25)
    raw = SPEC.as_json()
    assert FeatureSpec.from_json(json.loads(json.dumps(raw, sort_keys=True))).fingerprint == SPEC.fingerprint
    for key, other in {"seed": 4, "crosses": [["user"]], "vocabularies": [["user", ["u2", "u1"]]]}.items():
        assert FeatureSpec.from_json({**raw, key: other}).fingerprint != SPEC.fingerprint


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "features": {}}'])
def test_a_component_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "ranker.json").write_text(content, encoding="utf-8")
    with pytest.raises(PhaseFailed, match="train the ranker again"):
        OnnxRanker(tmp_path)


def test_a_graph_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    RankerInfo(SPEC).save(tmp_path)
    (tmp_path / "ranker.onnx").write_bytes(b"no graph")
    with pytest.raises(PhaseFailed, match="train it again"):
        OnnxRanker(tmp_path)
