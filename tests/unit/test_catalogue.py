"""The catalogue: what a snapshot keeps, which rows a filter allows, what the live view does with changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from registry.content import digest_folder
from serving.components.catalogue import Catalogue, Columns, build_catalogue, validate_attributes
from serving.errors import BadRequest
from serving.schema import Item
from serving.schema.app_spec import AttributeKind

KINDS: dict[str, AttributeKind] = {"section": "keyword", "price": "number", "meal_card": "bool"}

SHOPS = [
    Item("a", {"name": "국밥"}, {"section": "soup", "price": 9, "meal_card": True}),
    Item("b", {"name": "burger", "menu": ["x", 1]}, {"section": "grill", "price": 12.5, "meal_card": False}),
    Item("c", {"name": ""}, {}),
    Item("d", {"name": "ramen"}, {"section": "soup", "price": -1, "meal_card": None}),
]


def loaded(folder: Path, items: list[Item], kinds: Mapping[str, AttributeKind] = KINDS) -> Catalogue:
    assert build_catalogue(folder, items, kinds) == len(items)
    return Catalogue.load(folder)


def ids_allowed(catalogue: Catalogue, filters: Mapping[str, Any]) -> str:
    mask = catalogue.allowed(filters)
    rows = range(catalogue.rows) if mask is None else np.flatnonzero(mask).tolist()
    return "".join(catalogue.ids[row] for row in rows)


@pytest.fixture
def shops(tmp_path: Path) -> Catalogue:
    return loaded(tmp_path, SHOPS)


def test_a_snapshot_keeps_ids_order_and_documents(shops: Catalogue) -> None:
    assert shops.ids == ["a", "b", "c", "d"]
    assert (len(shops), shops.rows, shops.snapshot_rows) == (4, 4, 4)
    for row, item in enumerate(SHOPS):
        assert orjson.loads(shops.document(row)) == item.fields == shops.item(row).fields
    assert "a" in shops
    assert "z" not in shops


def test_an_empty_catalogue_loads_and_takes_items(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path, [])
    assert (len(catalogue), catalogue.allowed({}), ids_allowed(catalogue, {"price": 9})) == (0, None, "")
    assert catalogue.apply(SHOPS[:1], []) == 0
    assert ids_allowed(catalogue, {"price": 9}) == "a"


@pytest.mark.parametrize("odd", ["a\rb", "a\r\tb", "a\u2028b", " ", "가나", "x" * 1000, "a\x85b", "a\x0cb"])
def test_odd_ids_come_back_as_they_were(tmp_path: Path, odd: str) -> None:
    assert loaded(tmp_path, [Item(odd, {}), Item("last", {})]).ids == [odd, "last"]


@pytest.mark.parametrize("ids", [("a", "a"), ("a\nb",)])
def test_ids_that_cannot_be_told_apart_are_refused(tmp_path: Path, ids: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest, match="a") as refused:
        build_catalogue(tmp_path, [Item(i, {}) for i in ids], {})
    assert refused.value.field == "id"


def test_attributes_may_have_any_name(tmp_path: Path) -> None:
    kinds: dict[str, AttributeKind] = {"offsets": "number", "../up/and/away": "keyword", "크기": "bool", "": "number"}
    item = Item("a", {"name": "x"}, {"offsets": 5, "../up/and/away": "far", "크기": True, "": 0})
    folder = tmp_path / "deep" / "catalogue"
    catalogue = loaded(folder, [item, Item("b", {"name": "y"})], kinds)
    assert orjson.loads(catalogue.document(1)) == {"name": "y"}
    for name, value in item.attributes.items():
        assert ids_allowed(catalogue, {name: value}) == "a"
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != folder] == []


def test_the_same_items_give_the_same_digest_whatever_the_order_of_kinds(tmp_path: Path) -> None:
    build_catalogue(tmp_path / "one", SHOPS, KINDS)
    build_catalogue(tmp_path / "two", iter(SHOPS), dict(reversed(KINDS.items())))
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, "abcd"),
        ({"section": "soup"}, "ad"),
        ({"section": ["soup", "grill"]}, "abd"),
        ({"section": "unheard of"}, ""),
        ({"section": ["unheard of", "grill"]}, "b"),
        ({"section": []}, ""),
        ({"price": 9}, "a"),
        ({"price": [9.0, -1]}, "ad"),
        ({"price": {"gte": 9}}, "ab"),
        ({"price": {"gt": 9, "lte": 12.5}}, "b"),
        ({"price": {"lt": 9}}, "d"),
        ({"price": {}}, "abd"),
        ({"meal_card": True}, "a"),
        ({"meal_card": False}, "b"),
        ({"meal_card": [True, False]}, "ab"),
        ({"section": "soup", "price": {"gt": 0}, "meal_card": True}, "a"),
        ({"section": "grill", "meal_card": True}, ""),
    ],
)
def test_filters(shops: Catalogue, filters: Mapping[str, Any], wanted: str) -> None:
    assert ids_allowed(shops, filters) == wanted


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"colour": "red"}, "filters.colour"),
        ({"section": {"gte": "a"}}, "filters.section"),
        ({"section": 5}, "filters.section"),
        ({"section": None}, "filters.section"),
        ({"section": ["soup", True]}, "filters.section"),
        ({"meal_card": 1}, "filters.meal_card"),
        ({"meal_card": "true"}, "filters.meal_card"),
        ({"meal_card": {"gte": False}}, "filters.meal_card"),
        ({"price": "9"}, "filters.price"),
        ({"price": True}, "filters.price"),
        ({"price": [9, None]}, "filters.price"),
        ({"price": 10**400}, "filters.price"),
        ({"price": float("nan")}, "filters.price"),
        ({"price": {"above": 9}}, "filters.price"),
        ({"price": {"gte": "9"}}, "filters.price.gte"),
        ({"price": {"gte": True}}, "filters.price.gte"),
        ({"price": {"lt": 10**400}}, "filters.price.lt"),
        ({"price": {"lt": float("nan")}}, "filters.price.lt"),
    ],
)
def test_a_filter_that_cannot_be_answered_is_named(shops: Catalogue, filters: Mapping[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        shops.allowed(filters)
    assert refused.value.field == field
    # The ingress asks the same of no rows at all, before it queues a query.
    with pytest.raises(BadRequest):
        Columns(KINDS).mask(filters, 0)


WRONG = [
    ({"colour": "red"}, "attributes.colour"),
    ({"section": 5}, "attributes.section"),
    ({"meal_card": 1}, "attributes.meal_card"),
    ({"price": "9"}, "attributes.price"),
    ({"price": True}, "attributes.price"),
    ({"price": float("nan")}, "attributes.price"),
    ({"price": float("-inf")}, "attributes.price"),
    ({"price": 10**400}, "attributes.price"),
]


@pytest.mark.parametrize(("attributes", "field"), WRONG)
def test_attributes_of_the_wrong_kind_are_named(attributes: Mapping[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match="'bad'") as refused:
        validate_attributes(Item("bad", {}, attributes), KINDS)
    assert refused.value.field == field


def test_good_and_missing_attributes_pass() -> None:
    for item in SHOPS:
        validate_attributes(item, KINDS)


@pytest.mark.parametrize(("attributes", "field"), WRONG[1:])
def test_a_bad_change_changes_nothing(shops: Catalogue, attributes: Mapping[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        shops.apply([Item("a", {"name": "new"}, {"price": 1}), Item("bad", {}, attributes)], ["b"])
    assert refused.value.field == field
    assert (shops.rows, shops.ids, shops.allowed({})) == (4, ["a", "b", "c", "d"], None)
    assert shops.apply([Item("e", {"name": "next"}, {"price": 1})], []) == 4
    assert (shops.ids[4], orjson.loads(shops.document(4))) == ("e", {"name": "next"})
    assert ids_allowed(shops, {"price": 1}) == "e"


def test_a_bad_item_is_refused_when_the_snapshot_is_built(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"'bad'.*'price' is a number"):
        build_catalogue(tmp_path, [Item("bad", {}, {"price": "cheap"})], KINDS)


def test_an_attribute_that_the_spec_dropped_is_left_out(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path, SHOPS, {"price": "number"})
    assert ids_allowed(catalogue, {"price": 9}) == "a"
    with pytest.raises(BadRequest, match="section"):
        catalogue.allowed({"section": "soup"})


def test_a_change_takes_a_new_row_and_masks_the_old_one(shops: Catalogue) -> None:
    assert shops.allowed({}) is None
    assert shops.apply([Item("b", {"name": "bibimbap"}, {"section": "rice"}), Item("e", {"name": "tea"})], ["d"]) == 4
    assert ids_allowed(shops, {}) == "acbe"
    assert (len(shops), shops.rows, shops.snapshot_rows) == (4, 6, 4)
    assert orjson.loads(shops.document(4)) == {"name": "bibimbap"}
    assert ids_allowed(shops, {"section": "rice"}) == "b"
    assert ids_allowed(shops, {"section": "grill"}) == ""


def test_deletes_of_what_is_not_there_and_repeats_are_harmless(shops: Catalogue) -> None:
    for _ in range(2):
        shops.apply([Item("b", {"name": "same"})], ["a", "never seen"])
        assert ids_allowed(shops, {}) == "cdb"
    assert "a" not in shops
    shops.apply([SHOPS[0]], [])
    assert "a" in shops
    assert len(shops) == 4


def test_the_last_of_an_id_in_one_batch_wins(shops: Catalogue) -> None:
    shops.apply([Item("x", {"v": 1}), Item("x", {"v": 2})], [])
    mask = shops.allowed({})
    assert mask is not None
    assert mask.tolist() == [True] * 4 + [False, True]


def test_a_mask_is_the_callers_for_good(shops: Catalogue) -> None:
    """Arrays are replaced, never written: a reader's mask stays what it was."""
    shops.apply([], ["a"])
    before = shops.allowed({})
    assert before is not None
    copy = before.copy()
    shops.apply([Item("b", {})], ["c"])
    assert before.tolist() == copy.tolist()
