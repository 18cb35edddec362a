"""Order texts as customers write them: lines, quantities, units, vintages, and what is only politeness."""

from __future__ import annotations

import pytest

from serving.errors import BadRequest
from serving.schema import Query
from serving.understand.order_lines import OrderLines
from serving.understand.plain import Plain


def read(text: str) -> list[tuple[str, int | None, str | None, int | None]]:
    return [(u.query.text, u.quantity, u.unit, u.vintage) for u in OrderLines().understand([Query(text)])[0]]


@pytest.mark.parametrize(
    ("text", "name", "quantity", "unit", "vintage"),
    [
        ("레이크 찰리스 말보로 24병", "레이크 찰리스 말보로", 24, "bottle", None),
        ("레이크찰리스24병", "레이크찰리스", 24, "bottle", None),
        ("레이크찰리스24", "레이크찰리스", 24, None, None),
        ("1) 샤또 마고 2016년산 두 병 주세요", "샤또 마고 2016", 2, "bottle", 2016),
        ("- 클라우디 베이 쇼블 '21 x6", "클라우디 베이 쇼블 2021", 6, None, 2021),
        ("돔페리뇽 12빈 3본", "돔페리뇽 2012", 3, "bottle", 2012),
        ("오퍼스원 19년산 5본요", "오퍼스원 2019", 5, "bottle", 2019),
        ("펜폴즈 빈 389", "펜폴즈 빈 389", None, None, None),
        ("펜폴즈 빈 389 12", "펜폴즈 빈 389", 12, None, None),
        ("펜폴즈 bin 28", "펜폴즈 bin 28", None, None, None),
        ("19 Crimes Red 6 btl", "19 Crimes Red", 6, "bottle", None),
        ("1865 까쇼 10본", "1865 까쇼", 10, "bottle", None),
        ("2 cases of Lake Chalice please", "Lake Chalice", 2, "box", None),
        ("Opus One (2019) - 6 bottles pls", "Opus One 2019", 6, "bottle", 2019),
        ("6 x Dom Perignon 2012", "Dom Perignon 2012", 6, None, 2012),
        ("24 레이크 찰리스", "레이크 찰리스", 24, None, None),
        ("１２병 오퍼스원", "오퍼스원", 12, "bottle", None),
        ("NV 크루그 1", "크루그", 1, None, None),
        ("크루그 375ml 2", "크루그 375ml", 2, None, None),
        ("크루그 1.5L 2병", "크루그 1.5L", 2, "bottle", None),
        ("크루그 750", "크루그 750", None, None, None),
        ("루이 라뚜르 샤블리 1박스(12병)", "루이 라뚜르 샤블리", 1, "box", None),
        ("본 로마네 2019 3본", "본 로마네 2019", 3, "bottle", 2019),
        ("도멘 르로이 본 로마네", "도멘 르로이 본 로마네", None, None, None),
        ("테일러 20년 토니 포트 6병", "테일러 20년 토니 포트", 6, "bottle", None),
        ("20년 테일러 토니", "20년 테일러 토니", None, None, None),
        ("루이 로드레 컬렉션 244", "루이 로드레 컬렉션 244", None, None, None),
        ("말보로두병", "말보로", 2, "bottle", None),
        ("열두병 까쇼", "까쇼", 12, "bottle", None),
        ("크루그 1BT plz", "크루그", 1, "bottle", None),
        ("까쇼 두박스 보내주실 수 있나요?", "까쇼", 2, "box", None),
        ("크루그 수량: 6", "크루그", 6, None, None),
        ("Château Margaux, Margaux 2016 3cs", "Château Margaux, Margaux 2016", 3, "box", 2016),
        ("크루그 0병", "크루그 0병", None, None, None),
        ("p/n 6병", "p/n", 6, "bottle", None),
        ("opus one 12b", "opus one", 12, "bottle", None),  # b for bottles, glued
        ("opus one 3B", "opus one", 3, "bottle", None),
        ("차콜라노 2", "차콜라노", 2, None, None),
        ("piano 4", "piano", 4, None, None),  # "no" inside a word numbers nothing
        ("pilot 8", "pilot", 8, None, None),
        ("cabin 6", "cabin", 6, None, None),
        ("lot 21", "lot 21", None, None, None),
        ("크루그 4병만요", "크루그", 4, "bottle", None),
        ("크루그 세병이요", "크루그", 3, "bottle", None),
        ("크루그 두 박스만 더 보내주세요", "크루그", 2, "box", None),
        ("혹시 크루그 재고 있을까요? 있으면 5병이요", "크루그", 5, "bottle", None),
        ("크루그 tpqud", "크루그", 3, "bottle", None),  # 세병 in the other layout
        ("크루그 8qud", "크루그", 8, "bottle", None),
        ("크루그 16Y 2병", "크루그 2016", 2, "bottle", 2016),
        ("크루그 16' 2병", "크루그 2016", 2, "bottle", 2016),
        ("크루그 18빈티지로 2병", "크루그 2018", 2, "bottle", 2018),
        ("크루그 18빈 1.5 2병", "크루그 1.5 2018", 2, "bottle", 2018),
        ("그라함 30년 / 2", "그라함 30년", 2, None, 2030),  # an age or a year: the words stay for retrieval
        ("크루그 18 2병", "크루그 18", 2, "bottle", None),  # perhaps a year
        ("ㅋㄹㄱ 2병", "ㅋㄹㄱ", 2, "bottle", None),  # consonants, not laughter
        ("크루그 2병 ㅎㅎㅎ", "크루그", 2, "bottle", None),
        ("ㅋㅋ 크루그 한병", "크루그", 1, "bottle", None),
        ("크루그 2병 (행사용, 6병짜리 아님)", "크루그 (행사용, 아님)", 2, "bottle", None),
        ("오퍼스원 화이트 말고 레드 6병", "오퍼스원 레드", 6, "bottle", None),
    ],
)
def test_one_line(text: str, name: str, quantity: int | None, unit: str | None, vintage: int | None) -> None:
    assert read(text) == [(name, quantity, unit, vintage)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("안녕하세요 사장님\n오퍼스원 2병\n\n크루그 1박스\n내일까지 부탁드려요", [("오퍼스원", 2), ("크루그", 1)]),
        ("오퍼스원 2병, 크루그 6병", [("오퍼스원", 2), ("크루그", 6)]),
        ("오퍼스원 2병; 크루그", [("오퍼스원", 2), ("크루그", None)]),
        ("오퍼스원 2병 / 크루그 6병", [("오퍼스원", 2), ("크루그", 6)]),
        ("오퍼스원 2병 크루그 6병 보내주세요", [("오퍼스원", 2), ("크루그", 6)]),
        ("2병 오퍼스원 6병 크루그", [("오퍼스원", 2), ("크루그", 6)]),
        ("오퍼스원 세 병이랑 크루그 두 병", [("오퍼스원", 3), ("크루그", 2)]),
        ("오퍼스원, 크루그 각 6병", [("오퍼스원", 6), ("크루그", 6)]),
        ("① 오퍼스원 3병 ② 크루그 2병", [("오퍼스원", 3), ("크루그", 2)]),
        ("two cases of opus one and 3 bottles of krug", [("opus one", 2), ("krug", 3)]),
    ],
)
def test_several_items(text: str, lines: list[tuple[str, int | None]]) -> None:
    assert [(name, quantity) for name, quantity, _, _ in read(text)] == lines


@pytest.mark.parametrize("text", ["안녕하세요", "", "  ", "24", "내일까지 부탁드려요"])
def test_a_text_without_items_still_gives_one_entry(text: str) -> None:
    ((name, *_),) = read(text)
    assert name == text.strip()


def test_the_raw_line_and_the_query_are_carried() -> None:
    query = Query("오퍼스원 2병\n크루그 6병", top_k=3, filters={"color": "red"}, user="u", session="s")
    entries = OrderLines().understand([query])[0]
    assert [u.raw for u in entries] == ["오퍼스원 2병", "크루그 6병"]
    assert all(
        (u.query.top_k, u.query.filters, u.query.user, u.query.session) == (3, {"color": "red"}, "u", "s")
        for u in entries
    )


def test_single_jamo_stay_as_typed() -> None:
    assert read("ㄹㅇㅋ ㅊㄹㅅ 6병")[0][0] == "ㄹㅇㅋ ㅊㄹㅅ"


def test_more_lines_than_allowed_are_refused() -> None:
    three = "오퍼스원 1병\n크루그 1병\n돔 페리뇽 1병"
    assert len(OrderLines(max_lines=3).understand([Query(three)])[0]) == 3
    with pytest.raises(BadRequest, match="max_lines = 2") as caught:
        OrderLines(max_lines=2).understand([Query(three)])
    assert caught.value.field == "query"


def test_queries_keep_their_order() -> None:
    both = OrderLines().understand([Query("크루그"), Query("오퍼스원\n돔 페리뇽")])
    assert [[u.query.text for u in one] for one in both] == [["크루그"], ["오퍼스원", "돔 페리뇽"]]


def test_plain_takes_the_text_as_it_is() -> None:
    ((entry,),) = Plain().understand([Query(" 크루그 6병 ")])
    assert (entry.query.text, entry.raw, entry.quantity) == ("크루그 6병", " 크루그 6병 ", None)
