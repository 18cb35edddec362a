"""Understanding by rules: entities as they are spelled and mistyped, amounts, intents, and what a conversation adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from registry.errors import ReleaseRefused
from serving.components.catalogue import Catalogue, build_catalogue
from serving.components.lexicon import Lexicon, LexiconSpec, build_lexicon, read_lexicon
from serving.errors import BadRequest, PhaseFailed
from serving.schema import AppSpec, Item, Query, Turn, Understood
from serving.understand.amounts import AmountReader, number_of
from serving.understand.make import make_understander
from serving.understand.rules_engine import RulesEngine
from serving.understand.turns import turn_of

RAW: dict[str, Any] = {
    "default_intent": "find",
    "intents": {"find": {"patterns": ["추천", "find"]}, "thanks": {"patterns": ["고마"]}},
    "entities": {
        "food": {"attribute": "category", "values": {"치킨": ["통닭", "닭"], "피자": ["pizza"], "햄버거": ["버거"]}},
        "payment": {"values": {"card": {"spellings": ["급식카드"], "filter": {"card": True}, "text": "급식카드"}}},
        "taste": {"prefer": True, "values": {"spicy": {"spellings": ["매운"], "filter": {"spicy": True}}}},
    },
    "amounts": {"price": {"attribute": "price", "units": {"원": 1}}},
    "relative": {"cheaper": {"amount": "price", "than": "less", "words": ["더 싼"]},
                 "dearer": {"amount": "price", "than": "more", "words": ["더 비싼"]}},
    "follow_up": [r"^[가-힣]{1,6}[은는]\s*\??$"],
    "fillers": ["되는", "데", "데는", "해줘", "집"],
}  # fmt: skip
SPEC = AppSpec.model_validate(
    {
        "name": "made-up",
        "items": {
            "text": ["name"],
            "attributes": {"category": "keyword", "price": "number", "card": "bool", "spicy": "bool"},
        },
        "understand": {"engine": "rules", "lexicon": "lexicon.yaml"},
        "retrieve": {"sources": {"words": {"engine": "lexical"}}},
    }
)


@pytest.fixture
def engine() -> RulesEngine:
    return RulesEngine(Lexicon(LexiconSpec.model_validate(RAW)))


def ask(engine: RulesEngine, text: str, *history: Turn, **query: Any) -> Understood:
    return engine.understand([Query(text, history=history, **query)])[0][0]


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("급식카드 되는 치킨집 추천해줘", {"payment": "card", "food": "치킨"}),
        ("급식카드되는치킨집", {"payment": "card", "food": "치킨"}),
        ("급식 카드 되는 통닭", {"payment": "card", "food": "치킨"}),
        ("치긴집 추천", {"food": "치킨"}),  # one jamo off, and an ending
        ("clzls 추천", {"food": "치킨"}),  # the same keys in the other layout
        ("ㅍㅈ 추천", {"food": "피자"}),  # initial consonants
        ("치킨이나 피자", {"food": ["치킨", "피자"]}),
        ("치킨 말고 피자", {"food": "피자"}),
        ("치킨 빼고", {"food": {"not": ["치킨"]}}),
        ("find pizza", {"food": "피자"}),
        ("만원 이하 버거", {"food": "햄버거", "price": {"lte": 10_000}}),
        ("닭장", {}),  # a word of one syllable stands alone
        ("지킴이가 시킨 것", {}),
        ("", {}),
    ],
)
def test_finds_what_is_named(engine: RulesEngine, text: str, entities: dict[str, Any]) -> None:
    assert dict(ask(engine, text).entities) == entities


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("만원 이하", {"lte": 10_000}),
        ("6천원 미만", {"lt": 6000}),
        ("1만 5천원 넘는", {"gt": 15_000}),
        ("만오천 원 이상", {"gte": 15_000}),
        ("8,000원대", {"gte": 8000, "lt": 9000}),
        ("만원 정도", {"gte": 8000, "lte": 12_000}),
        ("7000원 있어", {"lte": 7000}),
        ("5천원에서 만원 사이", {"gte": 5000, "lte": 10_000}),
        ("5~7천원", {"gte": 5000, "lte": 7000}),
        ("대구에서 10000원 이하", {"lte": 10_000}),  # 구 is nine, too
        ("치킨10000원 이하", {"lte": 10_000}),
    ],
)
def test_reads_amounts(text: str, bounds: dict[str, float]) -> None:
    assert [one.bounds for one in AmountReader({"원": 1}).find(text)] == [bounds]


def test_reads_numbers_in_words_and_digits() -> None:
    assert [number_of(one) for one in ("만오천", "이만", "3만2천", "7,500", "백", "십이만")] == [
        15_000, 20_000, 32_000, 7500, 100, 120_000,
    ]  # fmt: skip


def test_filters_and_wishes_follow_from_entities(engine: RulesEngine) -> None:
    found = ask(engine, "급식카드 되는 매운 치킨 만원 이하")
    assert found.query.filters == {"card": True, "category": "치킨", "price": {"lte": 10_000}}
    assert found.query.prefer == {"spicy": True}
    assert found.engine == "rules"
    assert ask(engine, "치킨 빼고").query.filters == {"category": ["피자", "햄버거"]}


def test_the_filters_of_the_request_always_hold(engine: RulesEngine) -> None:
    found = ask(engine, "치킨 만원 이하", filters={"category": "피자", "price": {"gte": 5000}})
    assert found.query.filters == {"category": "피자", "price": {"lte": 10_000, "gte": 5000}}


def test_the_cleaned_query_keeps_what_tells_and_what_nobody_knows(engine: RulesEngine) -> None:
    assert ask(engine, "급식카드 되는 치긴집 추천해줘").query.text == "급식카드 치킨"
    assert ask(engine, "바삭바삭 통닭 추천해줘").query.text == "통닭 바삭바삭"
    assert ask(engine, "추천해줘").query.text == "추천해줘"  # nothing is left: as it was said


def test_confidence_is_lower_the_less_is_understood(engine: RulesEngine) -> None:
    all_of_it, typo, half, nothing = (
        ask(engine, text).confidence for text in ("치킨 추천", "치긴 추천", "치킨 횡설수설", "횡설수설")
    )
    assert all_of_it > typo > half > nothing
    assert nothing == 0.0


def test_cheaper_means_cheaper_than_all_that_was_shown(engine: RulesEngine) -> None:
    first = ask(engine, "급식카드 되는 치킨 만원 이하")
    turn = turn_of(first, "여기 어때?", ["s1", "s2"], 1.0)
    second = ask(engine, "더 싼 데는?", turn)
    assert second.query.filters == {
        "card": True, "category": "치킨", "price": {"lte": 10_000, "lt": {"least_of": ["s1", "s2"]}},
    }  # fmt: skip
    third = ask(engine, "피자는?", turn_of(second, "", ["s3"], 2.0))
    assert third.query.filters["category"] == "피자"
    assert third.query.filters["card"] is True
    fresh = ask(engine, "버거 추천", turn)
    assert fresh.query.filters == {"category": "햄버거"}  # it goes on from nothing


def test_cheaper_than_nothing_is_doubtful(engine: RulesEngine) -> None:
    found = ask(engine, "더 싼 데는?")
    assert found.query.filters == {}
    assert found.confidence <= 0.5


def test_a_catalogue_knows_what_is_the_least_of_some_items(tmp_path: Path) -> None:
    items = [Item(f"s{n}", {"name": "x"}, {"price": 1000 * n} if n else {}) for n in range(5)]
    build_catalogue(tmp_path, items, {"price": "number", "name": "keyword"})
    catalogue = Catalogue.load(tmp_path)

    def rows(**bounds: Any) -> list[int]:
        mask = catalogue.allowed({"price": bounds})
        assert mask is not None
        return np.flatnonzero(mask).tolist()

    assert rows(lt={"least_of": ["s3", "s2", "gone"]}) == [1]
    assert rows(gt={"most_of": ["s3", "s2"]}) == [4]
    assert rows(lte=3000, lt={"least_of": ["gone", "s0"]}) == [1, 2, 3]  # nothing to compare with
    with pytest.raises(BadRequest, match="wants a number"):
        rows(lt={"middle_of": ["s1"]})


def test_a_lexicon_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def build(**changes: Any) -> None:
        (tmp_path / "lexicon.yaml").write_text(yaml.safe_dump({**RAW, **changes}, allow_unicode=True))
        build_lexicon(tmp_path / "built", tmp_path / "lexicon.yaml", SPEC)

    build()
    assert Lexicon.load(tmp_path / "built").spec == LexiconSpec.model_validate(RAW)
    with pytest.raises(BadRequest, match="names 'sort'"):
        build(entities={"food": {"attribute": "sort", "values": {"a": ["b"]}}}, relative={})
    with pytest.raises(BadRequest, match="which is no number"):
        build(amounts={"price": {"attribute": "category", "units": {"원": 1}}})
    with pytest.raises(BadRequest, match="default_intent"):
        build(default_intent="nothing")
    with pytest.raises(BadRequest, match="no regular expression"):
        build(follow_up=["("])
    with pytest.raises(BadRequest, match="there is no lexicon"):
        read_lexicon(tmp_path / "none.yaml")


def test_a_release_without_its_lexicon_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseRefused, match="palate index made-up"):
        make_understander(SPEC)
    with pytest.raises(PhaseFailed, match="there is no lexicon"):
        make_understander(SPEC, tmp_path)
