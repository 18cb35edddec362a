"""What a selection teaches, and what it must not."""

from __future__ import annotations

import pytest

from serving.retrieve.rules import learn_expansions
from serving.schema import Item

LAKE = Item(
    "X1", {"name_ko": "레이크 찰리스 말보로 소비뇽 블랑", "name_en": "Lake Chalice Marlborough Sauvignon Blanc"}
)
CLOUDY = Item("X2", {"name_ko": "클라우디 베이 소비뇽 블랑", "name_en": "Cloudy Bay Sauvignon Blanc", "vintage": 2021})
DOM = Item("X3", {"name_ko": "돔 페리뇽", "name_en": "Dom Pérignon"})


@pytest.mark.parametrize(
    ("raw", "item", "learned"),
    [
        ("lc 말보로", LAKE, {"lc": "레이크 찰리스"}),
        ("LC 말보로 24병 부탁드립니다", LAKE, {"lc": "레이크 찰리스"}),
        ("레찰 말보로 소비뇽 블랑", LAKE, {"레찰": "레이크 찰리스"}),
        ("cb 소비뇽 블랑", CLOUDY, {"cb": "클라우디 베이"}),
        ("클베 소비뇽 블랑 2021 2박스", CLOUDY, {"클베": "클라우디 베이"}),
        ("DP 2012 3병", DOM, {"dp": "돔 페리뇽"}),
        ("그집 말보로 소비뇽 블랑", LAKE, {"그집": "레이크 찰리스"}),  # all the rest is named
    ],
)
def test_an_abbreviation_is_learned(raw: str, item: Item, learned: dict[str, str]) -> None:
    assert learn_expansions(raw, item) == learned


@pytest.mark.parametrize(
    ("raw", "item"),
    [
        ("레이크 찰리스 말보로", LAKE),
        ("래이크 찰리수 말보로 6병", LAKE),  # misspelled, not abbreviated
        ("2021 말보로 소비뇽 블랑 24병 부탁드려요", LAKE),
        ("Lake Chalice Marlborough 12 btl please", LAKE),
        ("말보로", LAKE),
        ("전혀 다른 와인", LAKE),
        ("24병", LAKE),
        ("", LAKE),
    ],
)
def test_nothing_is_learned(raw: str, item: Item) -> None:
    assert learn_expansions(raw, item) == {}


def test_an_item_without_names_teaches_nothing() -> None:
    assert learn_expansions("lc 말보로", Item("X", {})) == {}
