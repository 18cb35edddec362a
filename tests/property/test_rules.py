"""Whatever is typed, the rules source and the order reader answer, in range, the same each time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.retrieve.rules import RulesSource, learn_expansions, spelling
from serving.retrieve.rules.phonetics import phonetic
from serving.schema import Item, Query
from serving.understand.keyboard import flip_keyboard
from serving.understand.order_lines import MOST, OrderLines
from serving.understand.plain import Plain

ITEMS = [
    Item(f"M{i:05d}", {"name_ko": ko, "name_en": en})
    for i, (ko, en) in enumerate(
        [
            ("레이크 찰리스 말보로", "Lake Chalice Marlborough"),
            ("샤또 마고", "Château Margaux"),
            ("펜폴즈 빈 389", "Penfolds Bin 389"),
        ]
    )
]
RULES = RulesSource(ITEMS, {"name_ko": 1.0, "name_en": 1.0}, {"샤또": ["ch"]}, {})
MASKS = st.one_of(st.none(), st.lists(st.booleans(), min_size=1, max_size=6).map(lambda bits: np.array(bits, np.bool_)))
WORDS = (
    """레이크 찰리스 말보로 6병 2박스 2021 '19 x6 , / 1.5L 주세요 ㄹㅇㅋ 12 한 병 dkssud 각 1) ( NV bin 389 ch and ０"""
)
ORDERISH = st.lists(st.sampled_from([*WORDS.split(), "\n", "\u3000"]), max_size=14).map(" ".join)
TEXTS = st.one_of(st.text(max_size=80), ORDERISH)


@settings(max_examples=300, deadline=None)
@given(TEXTS, MASKS, st.integers(1, 5))
def test_search_answers_anything(text: str, mask: np.ndarray | None, top_k: int) -> None:
    rows, scores = RULES.search([Query(text)], [mask], top_k)[0]
    assert len(rows) == len(scores) <= top_k
    assert len(set(rows.tolist())) == len(rows)
    assert all(0 <= s <= 1 for s in scores)
    assert all(a >= b for a, b in pairwise(scores))
    assert mask is None or all(row < len(mask) and mask[row] for row in rows)
    again = RULES.search([Query(text)], [mask], top_k)[0]
    assert again.rows.tolist() == rows.tolist()
    assert again.scores.tolist() == scores.tolist()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_order_lines_answer_anything(text: str) -> None:
    query = Query(text, top_k=3, filters={"color": "red"}, user="u", session="s")
    entries = OrderLines(200).understand([query])[0]
    assert entries == OrderLines(200).understand([query])[0]
    assert entries
    for entry in entries:
        assert (entry.query.top_k, entry.query.filters, entry.query.user, entry.query.session) == (
            3,
            {"color": "red"},
            "u",
            "s",
        )
        assert entry.quantity is None or 1 <= entry.quantity <= MOST
        assert entry.vintage is None or 1950 <= entry.vintage <= 2035
        assert entry.unit in (None, "bottle", "box")
        assert "\n" not in entry.query.text


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["레이크 찰리스", "Opus One", "빈 389", "샤또 마고 1.5L"]),
    st.integers(1, 200),
    st.sampled_from(["병", " 병", "본", "박스", " cs", "ea", " bottles"]),
)
def test_a_quantity_with_its_unit_is_read_and_leaves_the_name(name: str, count: int, unit: str) -> None:
    (entry,) = OrderLines().understand([Query(f"{name} {count}{unit}")])[0]
    assert (entry.query.text, entry.quantity) == (name, count)
    assert entry.unit == ("box" if unit.strip() in ("박스", "cs") else "bottle")


@given(st.lists(st.text(max_size=20), max_size=5))
def test_plain_keeps_each_query(texts: list[str]) -> None:
    understood = Plain().understand([Query(t) for t in texts])
    assert [[(u.raw, u.query.text) for u in one] for one in understood] == [[(t, t.strip())] for t in texts]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_learning_takes_only_words_of_the_item(text: str) -> None:
    known = {word for value in ITEMS[0].fields.values() for word in spelling.words(spelling.normalise(value))}
    for token, words in learn_expansions(text, ITEMS[0]).items():
        assert not any(c.isdigit() for c in token)
        assert set(words.split()) <= known


@given(st.text(alphabet=st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1, max_size=6))
def test_hangul_survives_the_keyboard_and_back(word: str) -> None:
    typed = flip_keyboard(word)
    assert typed is not None
    assert typed.isascii()
    assert spelling.letters(word)
    assert isinstance(phonetic(word), str)
