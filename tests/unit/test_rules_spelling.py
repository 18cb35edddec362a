"""Spelling, sound, numbers and grams: the parts under the rules source."""

from __future__ import annotations

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from serving.retrieve.rules import spelling
from serving.retrieve.rules.grams import GramIndex
from serving.retrieve.rules.numbers import Facts, item_facts, take_facts
from serving.retrieve.rules.phonetics import phonetic
from serving.retrieve.rules.spoken import as_written
from serving.schema import Item
from serving.understand.keyboard import flip_keyboard


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("dkssud", "안녕"), ("Rkqpfmsp", "까베르네"), ("qmffkd", "블랑"), ("rhkstn", "관수"), ("ekfr", "닭")],
)
def test_the_keyboard_flips_both_ways(typed: str, meant: str) -> None:
    assert flip_keyboard(typed) == meant
    assert flip_keyboard(meant) == typed.lower()


@pytest.mark.parametrize("word", ["chateau", "123", "lake", "a1", "é", ""])
def test_what_gives_no_text_in_the_other_layout_is_not_flipped(word: str) -> None:
    assert flip_keyboard(word) is None


def distance(a: str, b: str) -> float:
    return Levenshtein.distance(*(spelling.symbols(spelling.letters(w)) for w in (a, b))) / 2


def test_jamo_that_are_alike_are_near() -> None:
    assert distance("가", "까") == distance("가", "카") == 0.5
    assert distance("새", "세") == distance("고", "구") == 0.5
    assert distance("가", "마") == distance("가", "기") == 1.0
    assert distance("가", "각") == 1.0
    assert distance("아", "이") == 1.0
    assert distance("쉬", "슈") == distance("사", "자") == distance("다", "타") == 0.5


@pytest.mark.parametrize(
    ("spoken", "written"),
    [("피쓰리", "p3"), ("브이에스", "vs"), ("칠공칠", "707"), ("디알씨", "drc"), ("엑스오", "xo")],
)
def test_letters_and_digits_may_be_written_as_they_are_spoken(spoken: str, written: str) -> None:
    assert written in as_written(spoken)


@pytest.mark.parametrize("word", ["마고", "피", "원피스", "", "이" * 99])
def test_other_words_spell_nothing_out(word: str) -> None:
    assert as_written(word) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("찰리스", "chalice"),
        ("레이크", "lake"),
        ("소비뇽", "sauvignon"),
        ("쉬라즈", "shiraz"),
        ("샤토", "chateau"),
        ("몬테스", "montes"),
    ],
)
def test_the_same_sound_in_two_scripts_is_near(a: str, b: str) -> None:
    assert Levenshtein.normalized_similarity(phonetic(a), phonetic(b)) >= 0.6


@pytest.mark.parametrize(("a", "b"), [("찰리스", "margaux"), ("레이크", "penfolds"), ("소비뇽", "merlot")])
def test_other_sounds_are_far(a: str, b: str) -> None:
    assert Levenshtein.normalized_similarity(phonetic(a), phonetic(b)) < 0.5


@pytest.mark.parametrize(
    ("text", "facts", "rest"),
    [
        ("마고 2016", Facts(2016, None), "마고"),
        ("마고 2016년산", Facts(2016, None), "마고"),
        ("마고 '16", Facts(2016, None), "마고"),
        ("마고 96년", Facts(1996, None), "마고"),
        ("크루그 1.5L", Facts(None, 1500), "크루그"),
        ("크루그 375ml 2012", Facts(2012, 375), "크루그"),
        ("magnum krug", Facts(None, 1500), "krug"),
        ("크루그 하프 보틀", Facts(None, 375), "크루그"),
        ("테일러 20년 토니", Facts(None, None), "테일러 20년 토니"),
        ("1865 까쇼", Facts(None, None), "1865 까쇼"),
        ("빈 389", Facts(None, None), "빈 389"),
        ("크루그 반병", Facts(None, 375), "크루그"),
        ("크루그 미니 (375)", Facts(None, 375), "크루그 ( )"),
        ("크루그 하프보틀로", Facts(None, 375), "크루그"),
        ("크루그매그넘", Facts(None, 1500), "크루그"),
        ("크루그 mag", Facts(None, 1500), "크루그"),
        ("크루그 1.5", Facts(None, 1500), "크루그"),
        ("magari 11.5 도미니크", Facts(None, None), "magari 11.5 도미니크"),
        ("마고 18년", Facts(None, None), "마고 18년"),  # an age or a year: left to the catalogue
        ("마고 18빈", Facts(2018, None), "마고"),
        ("크루그 로제", Facts(None, None, True), "크루그 로제"),
    ],
)
def test_years_and_volumes_are_taken_out(text: str, facts: Facts, rest: str) -> None:
    found, left = take_facts(text)
    assert (found, left.split()) == (facts, rest.split())


def test_fields_and_attributes_say_more_than_the_name() -> None:
    item = Item("X", {"name": "마고", "vintage": 2016}, {"volume_ml": 1500.0})
    assert item_facts(item, "마고 2010") == Facts(2016, 1500)
    assert item_facts(Item("X", {"vintage": "NV"}), "마고") == Facts(None, None)


def test_gram_similarity_is_the_cosine_of_gram_sets() -> None:
    index = GramIndex(["말보로", "말보로 소비뇽", "xyz", ""])
    texts, alike = index.similar("말보로")
    assert texts.tolist() == [0, 1]
    assert alike[0] == pytest.approx(1.0)
    assert 0 < alike[1] < 1
    assert index.nearest("말보로", 1).tolist() == [0]
    assert not len(index.nearest("zq", 3))
    assert not len(GramIndex([]).similar("말보로")[0])
    assert np.all(alike <= 1 + 1e-9)
