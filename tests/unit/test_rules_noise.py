"""Noise that order lines carry beside the name: notes, chatter, sizes, years, colours; on a made-up catalogue."""

from __future__ import annotations

import pytest

from serving.retrieve.rules import RulesSource
from serving.schema import Item, Query

NAMES = (  # made-up item numbers, vintages, colours and volumes
    (
        "N10001",
        "콘테 로소 발디쏘라 네그라마로 살렌토",
        "Conte Rosso Baldissora Negramaro Salento",
        2019,
        750,
        "red",
    ),
    ("N10002", "콘테 로소 파솔리노 비안코", "Conte Rosso Pasolino Bianco", 2022, 750, "white"),
    ("N10003", "도멘 드 라 몽테 세르 그랑 로슈", "Domaine de la Monte Serre Grande Roche", 2018, 750, "red"),
    ("N10004", "도멘 드 라 몽테 세르 그랑 로슈", "Domaine de la Monte Serre Grande Roche", 2020, 750, "red"),
    ("N10005", "베르나르 퐁텐 브뤼 트라디숑", "Bernard Fontaine Brut Tradition", None, 750, "sparkling"),
    ("N10006", "베르나르 퐁텐 브뤼 트라디숑 1.5L", "Bernard Fontaine Brut Tradition 1.5L", None, 1500, "sparkling"),
    ("N10007", "베르나르 퐁텐 로제", "Bernard Fontaine Rosé", None, 750, "sparkling"),
    ("N10008", "베르나르 퐁텐 V3", "Bernard Fontaine Vigne 3", 2004, 750, "sparkling"),
    ("N10009", "올드 하버 20년 토니 포트", "Old Harbour 20 Year Old Tawny Port", None, 750, "fortified"),
    ("N10010", "힐사이드 빈 46 쉬라즈", "Hillside Bin 46 Shiraz", 2020, 750, "red"),
    ("N10011", "힐사이드 빈 52 쉬라즈", "Hillside Bin 52 Shiraz", 2020, 750, "red"),
    ("N10012", "더 가든 리슬링", "The Garden Riesling", 2022, 750, "white"),
    ("N10013", "오르카 베이 소비뇽 블랑", "Orca Bay Sauvignon Blanc", 2023, 750, "white"),
    ("N10014", "그란레인 메를로", "Granrain Merlot", 2021, 750, "red"),
)
ITEMS = [
    Item(i, {"name_ko": ko, "name_en": en, "vintage": year}, {"volume_ml": ml, "color": color})
    for i, ko, en, year, ml, color in NAMES
]
ALIASES = {"루즈": ["rouge", "레드", "red"], "블랑": ["blanc", "화이트", "white"], "스파클링": ["sparkling"]}
SHOWN = 0.3  # what scores less is no answer


@pytest.fixture(scope="module")
def rules() -> RulesSource:
    return RulesSource(ITEMS, {"name_ko": 1.0, "name_en": 1.0}, ALIASES, {})


def top(source: RulesSource, text: str) -> tuple[str | None, float]:
    rows, scores = source.search([Query(text)], [None], 3)[0]
    return (ITEMS[rows[0]].id, float(scores[0])) if len(rows) else (None, 0.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("발디쏘라", "N10001"),  # one word of a long name
        ("발디소라", "N10001"),  # tense and plain consonants
        ("파졸리노", "N10002"),
        ("dms 로슈", "N10003 N10004"),  # initials without the particles
        ("발디쏘라 (접대용)", "N10001"),
        ("트라디숑 // 늘 하던 가격으로", "N10005"),
        ("트라디숑 스파클링", "N10005"),  # what the attributes say
        ("콘테 로소 화이트", "N10002"),
        ("가든 더", "N10012"),  # a word of orders that is also a word of a name
        ("일단 파솔리노 추가", "N10002"),
        ("퐁텐 브이쓰리", "N10008"),
        ("힐사이드 오이", "N10011"),  # 52
        ("올드 하버 20년", "N10009"),  # an age
        ("ㅇㅊ", None),
        ("ㅐㅊㅁ ㅠ묘", "N10013"),  # orca bay in the other layout
    ],
)
def test_a_distinctive_word_is_enough_and_notes_do_not_hide_it(
    rules: RulesSource, text: str, wanted: str | None
) -> None:
    found, score = top(rules, text)
    if wanted is None:
        assert score < SHOWN
    else:
        assert found in wanted.split()
        assert score >= SHOWN


@pytest.mark.parametrize("size", ["매그넘", "mag", "1.5", "1500", "1.5L"])
def test_a_size_chooses_among_the_items_of_one_name(rules: RulesSource, size: str) -> None:
    found, score = top(rules, f"퐁텐 트라디숑 {size}")
    assert found == "N10006"
    assert score >= SHOWN
    assert top(rules, "퐁텐 트라디숑")[0] == "N10005"


def test_a_size_that_the_name_does_not_have_is_refused(rules: RulesSource) -> None:
    assert top(rules, "파솔리노 매그넘")[1] < SHOWN <= top(rules, "파솔리노")[1]


@pytest.mark.parametrize(
    ("text", "wanted"), [("그랑 로슈 18", "N10003"), ("그랑 로슈 20년", "N10004"), ("20 그랑 로슈", "N10004")]
)
def test_two_digits_choose_the_vintage(rules: RulesSource, text: str, wanted: str) -> None:
    assert top(rules, text)[0] == wanted


def test_two_digits_of_no_vintage_cost_nothing(rules: RulesSource) -> None:
    assert top(rules, "파솔리노 07") == pytest.approx(top(rules, "파솔리노"))


def test_rose_is_not_given_unasked(rules: RulesSource) -> None:
    assert top(rules, "베르나르 퐁텐")[0] != "N10007"
    assert top(rules, "퐁텐 로제")[0] == "N10007"


@pytest.mark.parametrize(
    "text", ["로랑 퐁타니 로제", "네", "오늘 몇 시에 오세요", "힐사이드 빈 77", "그란데 리저브 말벡"]
)
def test_what_is_only_near_or_chat_is_not_sure(rules: RulesSource, text: str) -> None:
    assert top(rules, text)[1] < SHOWN
