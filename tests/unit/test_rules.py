"""The rules source on a small made-up catalogue: each kind of noise it is built for, and what it must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.components.rules import build_rules, load_rules
from serving.errors import BadRequest
from serving.retrieve.rules import RulesSource
from serving.schema import Item, Query

NAMES = (  # made-up item numbers, vintages and volumes
    ("X10001", "레이크 찰리스 말보로 소비뇽 블랑", "Lake Chalice Marlborough Sauvignon Blanc", 2022),
    ("X10002", "레이크 찰리스 더 팔콘 피노 누아", "Lake Chalice The Falcon Pinot Noir", 2021),
    ("X10003", "클라우디 베이 소비뇽 블랑", "Cloudy Bay Sauvignon Blanc", 2021),
    ("X10004", "클라우디 베이 소비뇽 블랑", "Cloudy Bay Sauvignon Blanc", 2023),
    ("X10005", "클라우디 베이 소비뇽 블랑 1.5L", "Cloudy Bay Sauvignon Blanc 1.5L", 2023),
    ("X10006", "펜폴즈 빈 389 카베르네 쉬라즈", "Penfolds Bin 389 Cabernet Shiraz", 2019),
    ("X10007", "펜폴즈 빈 28 쉬라즈", "Penfolds Bin 28 Shiraz", 2019),
    ("X10008", "샤또 마고", "Château Margaux", 2016),
    ("X10009", "돔 페리뇽", "Dom Pérignon", 2012),
    ("X10010", "몬테스 알파 카베르네 소비뇽", "Montes Alpha Cabernet Sauvignon", 2020),
    ("X10011", "루이 자도 샤블리", "Louis Jadot Chablis", 2021),
    ("X10012", "오퍼스 원", "Opus One", 2019),
)
ITEMS = [Item(i, {"name_ko": ko, "name_en": en, "vintage": year}) for i, ko, en, year in NAMES]
ALIASES = {
    "소비뇽 블랑": ["쇼블", "sauv blanc"],
    "카베르네 소비뇽": ["까쇼", "cabernet sauvignon"],
    "샤또": ["ch", "chateau"],
}
WEIGHTS = {"name_ko": 1.0, "name_en": 1.0}
PLAIN = {"jamo": 0, "aliases": 0, "expansions": 0, "keyboard": 0, "phonetic": 0}


def make(**options: float) -> RulesSource:
    return RulesSource(ITEMS, WEIGHTS, ALIASES, options)


@pytest.fixture(scope="module")
def rules() -> RulesSource:
    return make()


def top(source: RulesSource, text: str, user: str | None = None) -> tuple[str | None, float]:
    rows, scores = source.search([Query(text, user=user)], [None], 3)[0]
    return (ITEMS[rows[0]].id, float(scores[0])) if len(rows) else (None, 0.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("레이크 찰리스 말보로", "X10001"),
        ("말보로 레이크 찰리스", "X10001"),  # word order
        ("레이크 찰리스 말로보", "X10001"),  # swapped syllables
        ("래이크 챨리스 말보러", "X10001"),  # vowels
        ("레이크찰리스말보로소비뇽블랑", "X10001"),  # no spaces
        ("레이 크 찰 리스 말보로", "X10001"),  # spaces inside words
        ("레이크찰리스 말로보 쇼블", "X10001"),  # several at once
        ("Lake Chalise Marlboro", "X10001"),  # Latin misspelled
        ("lake 찰리스 sauv blanc", "X10001"),  # two scripts
        ("fpdlzm ckffltm akfqhfh", "X10001"),  # Korean typed in the Latin layout
        ("ㅣ맏 초미ㅑㅊㄷ ㅡㅁ기ㅠㅐ개ㅕ호", "X10001"),  # Latin typed in the Korean layout
        ("lc 팔콘", "X10002"),  # initials
        ("레찰 팔콘", "X10002"),  # first syllables
        ("ㄹㅇㅋ ㅊㄹㅅ ㅍㅋ", "X10002"),  # first consonants
        ("reikeu challiseu malboro", "X10001"),  # romanised
        ("펜폴 빈 389", "X10006"),  # a cut word
        ("penfold bin 28", "X10007"),
        ("샤토 마르고", "X10008"),
        ("ＣＨＡＴＥＡＵ　ＭＡＲＧＡＵＸ", "X10008"),  # full width
        ("몬테스 까쇼", "X10010"),
        ("오 퍼 스 원", "X10012"),
        ("mrgx 2016 chateau", "X10008"),  # vowels left out
    ],
)
def test_noise_finds_the_item(rules: RulesSource, text: str, wanted: str) -> None:
    assert top(rules, text)[0] == wanted


@pytest.mark.parametrize("text", [name for _, ko, en, _ in NAMES for name in (ko, en)])
def test_a_name_as_written_is_sure(rules: RulesSource, text: str) -> None:
    found, score = top(rules, text)
    names = {i: (ko, en) for i, ko, en, _ in NAMES}
    assert found is not None
    assert text in names[found]
    assert score > 0.7


@pytest.mark.parametrize(
    "text",
    ["하이네켄 맥주", "배비치 블랙 라벨 피노 누아", "산 펠레그리노 탄산수", "kendall jackson chardonnay", "???", ""],
)
def test_what_the_catalogue_lacks_scores_low(rules: RulesSource, text: str) -> None:
    assert top(rules, text)[1] < 0.5


def test_a_vintage_in_the_text_is_preferred_and_else_the_newest(rules: RulesSource) -> None:
    assert top(rules, "클라우디 베이 소비뇽 블랑 2021")[0] == "X10003"
    assert top(rules, "클라우디 베이 소비뇽 블랑 '21")[0] == "X10003"
    assert top(rules, "클라우디 베이 소비뇽 블랑")[0] == "X10004"


@pytest.mark.parametrize("volume", ["1.5L", "매그넘", "1500ml", "magnum"])
def test_a_volume_in_the_text_is_preferred_and_else_the_standard_one(rules: RulesSource, volume: str) -> None:
    assert top(rules, f"클라우디 베이 쇼블 {volume}")[0] == "X10005"


def test_a_tie_of_vintages_costs_no_confidence(rules: RulesSource) -> None:
    assert top(rules, "클라우디 베이 소비뇽 블랑")[1] > 0.9


def test_a_name_that_fits_several_is_less_sure_than_one_that_fits_one(rules: RulesSource) -> None:
    assert top(rules, "레이크 찰리스")[1] < 0.7 < top(rules, "레이크 찰리스 말보로")[1]


def test_an_item_number_names_its_item_unless_it_is_filtered_out(rules: RulesSource) -> None:
    assert top(rules, "x10007 6병") == ("X10007", pytest.approx(0.99))
    mask = np.array([i.id != "X10007" for i in ITEMS])
    assert 6 not in rules.search([Query("X10007")], [mask], 5)[0].rows


def test_numbers_are_never_nearly_right(rules: RulesSource) -> None:
    assert top(rules, "펜폴즈 빈 128 쉬라즈")[1] < top(rules, "펜폴즈 빈 28 쉬라즈")[1]


def test_only_allowed_rows_come_back(rules: RulesSource) -> None:
    mask = np.zeros(len(ITEMS), np.bool_)
    mask[[1, 7]] = True
    rows, _ = rules.search([Query("레이크 찰리스 말보로")], [mask], 10)[0]
    assert set(rows.tolist()) <= {1, 7}
    assert rows[0] == 1
    assert len(rules.search([Query("샤또 마고")], [np.zeros(len(ITEMS), np.bool_)], 10)[0].rows) == 0


def test_a_mask_of_another_age_is_no_error(rules: RulesSource) -> None:
    """The catalogue may have grown, or this index, between the two steps of one query."""
    assert rules.search([Query("오퍼스 원")], [np.ones(3, np.bool_)], 5)[0].rows.max(initial=0) < 3
    assert rules.search([Query("오퍼스 원")], [np.ones(99, np.bool_)], 5)[0].rows[0] == 11


def test_results_keep_the_order_of_the_queries_and_top_k(rules: RulesSource) -> None:
    found = rules.search([Query("오퍼스 원"), Query("돔 페리뇽")], [None, None], 1)
    assert [hits.rows.tolist() for hits in found] == [[11], [8]]


def test_expansions_are_each_users_own() -> None:
    rules = make()
    rules.set_expansions({"user-7": {"그집": "레이크 찰리스"}})
    assert top(rules, "그집 말보로", "user-7")[0] == "X10001"
    assert top(rules, "그집 말보로", "user-7")[1] > 0.7 > top(rules, "그집 말보로", "user-8")[1]
    off = make(expansions=0)
    off.set_expansions({"user-7": {"그집": "레이크 찰리스"}})
    assert top(off, "그집 말보로", "user-7") == top(off, "그집 말보로")


def test_switches_take_away_what_they_name() -> None:
    assert top(make(keyboard=0), "fpdlzm ckffltm akfqhfh")[1] < 0.5 < top(make(), "fpdlzm ckffltm akfqhfh")[1]
    assert top(make(aliases=0, phonetic=0), "몬테스 쇼블")[0] != top(make(), "클라우디 쇼블")[0]
    assert top(make(phonetic=0), "reikeu challiseu malboro")[1] < top(make(), "reikeu challiseu malboro")[1]
    plain = make(**PLAIN)
    assert top(plain, "레이크 찰리스 말보로")[0] == "X10001"
    assert top(plain, "래이크 챨리수 말버러")[0] is None


def test_without_jamo_there_is_no_layout_flip_unless_it_is_asked_for() -> None:
    typed = "fpdlzm ckffltm akfqhfh"
    assert top(make(jamo=1), typed)[0] == "X10001"
    assert top(make(jamo=0), typed)[0] is None
    assert top(make(jamo=0, keyboard=1), typed)[0] == "X10001"
    assert top(make(keyboard=0), typed)[1] < top(make(), typed)[1]


@pytest.mark.parametrize("options", [{"jamoo": 1}, {"jamo": 2}])
def test_an_unknown_option_is_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(BadRequest) as caught:
        RulesSource(ITEMS, WEIGHTS, {}, options)
    assert caught.value.field == f"options.{next(iter(options))}"


def test_added_items_are_found_and_adding_again_changes_nothing() -> None:
    rules = make()
    more = [Item("X20001", {"name_ko": "배비치 블랙 라벨 피노 누아", "name_en": "Babich Black Label Pinot Noir"})]
    for _ in range(2):
        rules.add(len(ITEMS), more)
        rows, scores = rules.search([Query("배비치 블랙 라벨")], [None], 3)[0]
        assert rows[0] == len(ITEMS)
        assert scores[0] > 0.7
        assert rows.max() == len(ITEMS)


def test_adding_gives_the_same_answers_as_building() -> None:
    grown = RulesSource(ITEMS[:4], WEIGHTS, ALIASES, {})
    grown.set_expansions({"u": {"그집": "레이크 찰리스"}})
    grown.add(4, ITEMS[4:])
    built = make()
    built.set_expansions({"u": {"그집": "레이크 찰리스"}})
    for text in ("레이크찰리스 말로보", "그집 말보로", "펜폴 389"):
        ours, theirs = (s.search([Query(text, user="u")], [None], 5)[0] for s in (grown, built))
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert ours.scores == pytest.approx(theirs.scores)


def test_an_empty_catalogue_answers_with_nothing_and_can_grow() -> None:
    rules = RulesSource([], WEIGHTS, ALIASES, {})
    assert len(rules.search([Query("샤또 마고")], [None], 5)[0].rows) == 0
    rules.add(0, ITEMS)
    assert top(rules, "샤또 마고")[0] == "X10008"


def test_items_without_the_fields_are_no_error() -> None:
    rules = RulesSource([Item("A1", {}), Item("A2", {"name_ko": None, "name_en": "Opus One"})], WEIGHTS, {}, {})
    assert rules.search([Query("opus one")], [None], 5)[0].rows.tolist() == [1]


def test_the_component_is_the_same_bytes_for_the_same_content(tmp_path: Path) -> None:
    table = tmp_path / "aliases.yaml"
    table.write_text("소비뇽 블랑: [쇼블, sb]\n1865: [천팔백]\n", encoding="utf-8")
    build_rules(tmp_path / "a", table, {"name_ko": 1, "name_en": 0.5}, {"jamo": 1})
    build_rules(
        tmp_path / "b", {"1865": ["천팔백"], "소비뇽 블랑": ["쇼블", "sb"]}, {"name_en": 0.5, "name_ko": 1}, {"jamo": 1}
    )
    assert (tmp_path / "a/rules.json").read_bytes() == (tmp_path / "b/rules.json").read_bytes()
    rules = load_rules(tmp_path / "a")
    assert rules.aliases["소비뇽 블랑"] == ["쇼블", "sb"]
    assert RulesSource(ITEMS, rules.weights, rules.aliases, rules.options).search([Query("오퍼스 원")], [None], 1)


@pytest.mark.parametrize("content", ["- a list", "소비뇽 블랑: 쇼블", "a: [[b]]", "a: [b", "\t:"])
def test_a_bad_alias_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "aliases.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadRequest) as caught:
        build_rules(tmp_path / "out", path, WEIGHTS, {})
    assert caught.value.field == "aliases"
    assert str(path) in caught.value.detail


@pytest.mark.parametrize("content", [None, "not json", '{"format": 99}', "[]"])
def test_a_component_that_is_not_one_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "rules.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadRequest):
        load_rules(tmp_path)
