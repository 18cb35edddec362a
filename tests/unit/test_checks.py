"""What each check of an answer finds, and what it lets pass."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from serving.errors import BadRequest
from serving.generate import checks
from serving.generate.checks import Answered, Check, CheckResult
from serving.generate.grounded import Names, folded
from serving.generate.sentences import Sentences

ITEMS = [
    {"id": "S1", "name": "행복치킨", "menu": ["후라이드 9,000원"], "price": 9000, "card": True, "discount": 0.1},
    {"id": "S2", "name": "Moon Bakery", "menu": ["식빵"], "price": 4500, "card": False},
]
NAMES = Names(["행복치킨", "Moon Bakery", "황금올리브", "Sun Bakery", "올리"])
OPTIONS = {"names": ["name"], "suffixes": ["치킨"], "words": {"급식카드": "card", "할인": "discount"}}


def run(name: str, text: str, **more: Any) -> CheckResult:
    options = more.pop("options", OPTIONS if name == "grounded" else {})
    return checks.run(name, Answered(text, items=ITEMS, names=NAMES, options=options, **more))


@pytest.mark.parametrize(
    "text",
    [
        "행복치킨을 추천해요.",
        "「행복치킨」은 9,000원이에요.",
        "행복 치킨은 9000 원, 급식카드도 돼요!",
        "행복치킨은 9천원이고 10% 할인해요.",
        "Try Moon Bakery: 4,500 won.",
        "4500원이면 식빵을 살 수 있어요.",
        "올리브 기름은 쓰지 않아요.",  # too short a name to be told from a word
        "배가 고프시군요, 3곳을 찾았어요.",  # a number without a unit claims nothing
        "",
    ],
)
def test_what_was_found_may_be_said(text: str) -> None:
    assert run("grounded", text).passed, run("grounded", text).reason


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("황금올리브도 좋아요.", "황금올리브"),
        ("How about sun bakery?", "sunbakery"),
        ("대박치킨이 최고예요.", "대박치킨"),
        ("**달빛식당**을 추천해요.", "달빛식당"),
        ("행복치킨은 8,000원이에요.", "8,000"),
        ("행복치킨은 4,500원이에요.", "4,500"),  # the price of the other one
        ("Moon Bakery에서 급식카드를 써요.", "급식카드"),
        ("행복치킨은 1만 2천원이에요.", "1만 2천"),
        ("행복치킨은 50% 할인!", "50"),
        ("행복치킨은 4,500원이에요. Moon Bakery는 9,000원이에요.", "4,500"),  # each price is the other one's
        ("Moon Bakery도 있어요.\n행복치킨에서 급식카드를 써요.\nMoon Bakery에서 급식카드를 써요.", "급식카드"),
    ],
)
def test_what_was_not_found_is_refused(text: str, what: str) -> None:
    result = run("grounded", text)
    assert not result.passed
    assert what in result.reason
    assert result.score < 1


def test_what_the_user_said_is_the_users() -> None:
    assert run("grounded", "7,000원 이하로는 황금올리브가 없어요.", context="황금올리브 7000원 이하").passed


@pytest.mark.parametrize("text", ["행복치킨은 7,000원이에요.", "Moon Bakery에서 급식카드를 써요."])
def test_what_was_said_is_not_true_of_a_result_for_that(text: str) -> None:
    told = "급식카드 되는 7000원짜리 있어?\n황금올리브는 7,000원이고 급식카드가 돼요."
    assert not run("grounded", text, context=told).passed


def test_the_words_of_json_are_judged_by_sentence_too() -> None:
    swapped = {"say": "행복치킨은 4,500원이에요. Moon Bakery는 9,000원이에요."}
    assert "4,500" in run("grounded", "{}", data=swapped).reason
    right = {"say": "행복치킨은 9,000원이에요. Moon Bakery는 4,500원이에요."}
    assert run("grounded", "{}", data=right).passed


def test_json_is_held_to_values_at_paths() -> None:
    options = {"paths": {"picks.*.shop": ["name"]}, "unless": "substitute", "units": []}
    good = {"picks": [{"shop": "행복치킨"}, {"shop": "아무거나", "substitute": True}]}
    assert run("grounded", "{}", data=good, options=options).passed
    assert "아무거나" in run("grounded", "{}", data={"picks": [{"shop": "아무거나"}]}, options=options).reason


def test_schema_says_where_it_fails() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert run("schema", '{"n": 1}', data={"n": 1}, schema=schema).passed
    wrong = run("schema", '{"n": "1"}', data={"n": "1"}, schema=schema)
    assert (wrong.passed, "$.n" in wrong.reason) == (False, True)
    assert run("schema", "{", schema=schema).score == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"$dynamicRef": "http://10.0.0.1/x"},
        {"$ref": "http://10.0.0.1/x"},
        {"$ref": "#/$defs/gone"},
        {"$ref": "#"},  # without end
        {"$ref": "#/enum/0", "enum": [{"type": 5}]},
    ],
)
def test_a_schema_that_cannot_be_applied_fails_and_fetches_nothing(
    schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it was fetched"))
    result = run("schema", "{}", data={}, schema=schema)
    assert (result.passed, "cannot be applied" in result.reason) == (False, True)


@pytest.mark.parametrize(
    ("name", "text", "more", "passed"),
    [
        ("length", "짧다", {"options": {"min_chars": 5}}, False),
        ("length", "길고 길다" * 9, {"options": {"max_chars": 20}}, False),
        ("length", "알맞다", {"options": {"max_chars": 20}}, True),
        ("length", "끊긴", {"finish_reason": "length"}, False),
        ("language", "한국어로 답해요 OK", {"options": {"is": "ko"}}, True),
        ("language", "I only speak English", {"options": {"is": "ko"}}, False),
        ("language", "I only speak English", {"query": "which shop is near?"}, True),
        ("language", "한국어예요", {"query": "which shop is near?"}, False),
        ("language", "9,000!", {"options": {"is": "ko"}}, True),
        ("refusal", "죄송하지만 답변할 수 없어요.", {}, False),
        ("refusal", "I’m unable to help.", {}, False),
        ("refusal", "몰라요", {"options": {"phrases": ["몰라요"]}}, False),
        ("refusal", "행복치킨을 추천해요.", {}, True),
    ],
)
def test_length_language_and_refusal(name: str, text: str, more: dict[str, Any], passed: bool) -> None:
    assert run(name, text, **more).passed is passed


def test_names_are_found_wherever_they_stand_the_longest_first() -> None:
    names = Names(["치킨마루", "치킨마루 강남점", "마루"])
    assert names.within(folded("오늘은 치킨마루 강남점, 내일은 치킨 마루!")) == ["치킨마루강남점", "치킨마루"]


def test_unknown_checks_and_options_are_told() -> None:
    with pytest.raises(BadRequest, match="grounded"):
        checks.check_of("gronded")
    with pytest.raises(BadRequest, match=r"checks\.length\.max"):
        checks.check_options("length", {"max": 3})


def test_an_app_brings_its_own() -> None:
    mine = Check(lambda answered: (0.0, "it rhymes") if answered.text.endswith("rhyme") else (1.0, ""))
    checks.register("rhymes", mine)
    checks.register("rhymes", mine)
    assert run("rhymes", "a rhyme").reason == "it rhymes"
    with pytest.raises(ValueError, match="rhymes"):
        checks.register("rhymes", Check(lambda answered: (1.0, "")))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_sentences_are_the_same_however_the_text_comes(size: int) -> None:
    text = '가게는 3.5km 밖이에요. "좋죠?" 네!\n1. 행복치킨\n2. 달빛분식… 끝'
    cut = Sentences()
    found = [one for i in range(0, len(text), size) for one in cut.add(text[i : i + size])]
    found.append(cut.rest())
    assert "".join(found) == text
    assert [one.strip() for one in found] == [
        "가게는 3.5km 밖이에요.",
        '"좋죠?"',
        "네!",
        "1.",
        "행복치킨",
        "2.",
        "달빛분식…",
        "끝",
    ]
