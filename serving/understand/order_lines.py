"""Order texts as customers type them, in Korean, English or both: their lines, each with quantity, unit and vintage.

Called by the pipeline (`understand.engine: order_lines`). Pure. It knows how orders are written, not what is in the
catalogue; what it is not sure of stays in the text, where retrieval can weigh it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from serving.errors import BadRequest
from serving.schema import Query, Understood
from serving.understand.keyboard import flip_keyboard

MOST = 9_999  # of one unit in one line; a larger number is not a quantity
VOLUMES_ML = frozenset({187, 200, 330, 355, 375, 500, 700, 720, 750})

_BOX = r"박스|상자|다스|dozen|dz|케이스|짝|카톤|boxes|box|bxs?|cases|case|cs|c/s|ctns?|cartons?"
_BOTTLE = r"병|바틀|보틀|개|bottles|bottle|btls?|b/?ts?|ea|pcs|pc"
_BOTTLE_BON = r"본(?!\s*로마네)"  # 본 로마네 is a village
_TENS = ("", "열", "스물", "서른")
_ONES = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉")
_COUNTS = {
    **{ten + one: 10 * t + o for t, ten in enumerate(_TENS) for o, one in enumerate(_ONES) if ten + one},
    "삼": 3, "오": 5, "육": 6, "칠": 7, "팔": 8, "구": 9, "십": 10, "십이": 12, "이십": 20, "이십사": 24, "스무": 20,
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "a": 1, "a dozen": 12,
}  # fmt: skip
_COUNT = "|".join(sorted(_COUNTS, key=len, reverse=True))
_TAIL = (
    r"(?:씩|만|정도|쯤|짜리|더)?"
    r"(?:이에요|이예요|이고|이요|이여|요|으로|로|하고|이랑|랑|과|와|더|은|는|을|를|도|이나|입니다)?"
)

# A number or a counting word, then its unit.
_COUNTED = re.compile(
    rf"(?:[x×*:@]\s*)?(?:(?<![\d.,'’+-])(?P<number>\d{{1,4}})|(?<![a-z가-힣])(?P<count>{_COUNT})|(?P<glued>{_COUNT})(?=[가-힣]{{1,4}}\s*$))"
    rf"(?P<gap>\s*)(?:(?P<box>{_BOX})|(?P<bottle>{_BOTTLE}|{_BOTTLE_BON}|(?<=\d)b))(?P<tail>{_TAIL})(?![a-z])(?![가-힣])",
    re.I,
)
# x6, 6x, 수량 6, 박스 3
_MARKED = re.compile(
    rf"(?<![\w.])[x×*]\s*(\d{{1,3}})(?![\d.\w])|^\s*(\d{{1,3}})\s*[x×*](?=[\s가-힣])|(?:수량|qty|quantity)\s*[:=.]?\s*(\d{{1,4}})(?!\d)"
    rf"|(?<!\S)(?:{_BOX}|{_BOTTLE})\s?(\d{{1,3}})(?![\w.])",
    re.I,
)
_TRAILING = re.compile(r"(?<=[\s가-힣:=-])(\d{1,3})$")
_LEADING = re.compile(r"^(\d{1,3})\s+(?=[^\W\d_])")
_NAME_NUMBER = re.compile(r"(?:(?<![가-힣])빈|(?<![a-z])(?:bin|no\.?|number|nr\.?|lot)|넘버|#|№|로트)\s*$", re.I)

_VINTAGE = r"(?:빈티지|빈(?!\s*\d\d)|vintage|vtg)(?:으?로|꺼|거|걸로)?"
_YEAR = re.compile(
    rf"(?:빈티지|vintage|vtg)?\s*(?<![\d.])(19[5-9]\d|20[0-2]\d|203[0-5])(?!\d)(?:\s*년\s*(?:산|도|빈티지)?|\s*{_VINTAGE}|y(?![a-z]))?",
    re.I,
)
_TWO_DIGITS = r"([0-2]\d|3[0-5]|[5-9]\d)"
_SHORT_YEAR = re.compile(
    rf"(?<!\w)['’‘`]{_TWO_DIGITS}(?!\d)(?:년산|년)?"
    rf"|(?<![\d.]){_TWO_DIGITS}(?:\s*(?:년\s*(?:산|도|빈티지)|{_VINTAGE})|y|['’`])(?![가-힣a-z\d])"
    rf"|(?:빈티지|vintage|vtg|(?<![a-z])v)\s*{_TWO_DIGITS}(?!\d)",
    re.I,
)
_YEAR_OR_AGE = re.compile(rf"(?<![\d.]){_TWO_DIGITS}\s*년(?![가-힣a-z])")
_AGED = re.compile("톤니|토니|토우니|타우니|숙성|올드|포트|old|tawny|port|years?", re.I)  # 20년 is an age there
_NO_YEAR = re.compile(r"(?<![a-z])(?:n\.?v\.?|non[- ]?vintage)(?![a-z])|논\s?빈티지", re.I)

_BULLET = re.compile(
    r"^\s*(?:[-*•·‣▪▶►▷●○■□◆◇★☆✓✔➤→>※]+|\(?\d{1,2}\)|\d{1,2}\.(?=\s|[가-힣a-z])|[가-하][.)](?=\s))\s*", re.I
)
_POLITE = re.compile(
    r"(?<![가-힣])(?:(?:좀|더|꼭|우선)\s*){0,3}(?:"
    r"(?:보내|넣어|챙겨|갖다|가져다|준비해|배송해|출고해|빼|잡아)\s*(?:주|드|줘|줄|달)[가-힣]*(?:\s+수\s+있[가-힣]*)?|부탁[가-힣]*(?:\s*(?:드|합|해)[가-힣]+)?"
    r"|주(?:세요|세용|십시오|시면|실|시기)[가-힣]*|드립니다|드려요|드릴게요|합니다|할게요|해요"
    r"|(?:주문|발주|요청|신청|예약|출고|입고|배송|납품)(?:이요|요|건|서|입니다|합니다|할게요|해요|드[가-힣]+|해[가-힣]*|부[가-힣]+|가능[가-힣]*)?"
    r"|추가(?:요|로|입니다|해[가-힣]*)?|혹시(?:나|라도)?|재고(?:가|는|도)?|마감\s*(?:전에?|까지)|감사[가-힣]*|고맙[가-힣]*|수고[가-힣]*|안녕[가-힣]*|있(?:나요|나|을까요|으면|으시면|어요|는지|습니까)|될까요|되나요|가능[가-힣]*"
    r"|(?:사장|대표|실장|팀장|과장|부장|차장|대리|매니저|담당자|선생|이사)님[가-힣]*|(?:오늘|내일|모레|금일|명일|오전|오후|이번주|다음주)(?:까지|중|에|중으로)?"
    r"|품목|품명|수량(?!\s*[:=.]?\s*\d)|주문서|발주서|내역|목록|리스트|급(?:해요|합니다|하게|히)|넵|예|네|말씀[가-힣]*|넣(?:을게요|겠습니다|습니다)|입금[가-힣]*|결제[가-힣]*|빨리|빠른|항상|많으[가-힣]+|입니다|이요|그리고|하고|이랑|및|각각?|합계|총"
    r")(?![가-힣])"
    r"|(?<![a-z])(?:please|pls|plz|thanks?(?:\s+you)?|thx|asap|(?:i|we)(?:'d|\s+would)?\s+(?:like|need|want)(?:\s+to\s+order)?"
    r"|(?:can|could)\s+(?:i|we|you)\s+(?:get|have|send|please)|send(?:\s+(?:me|us))?|order(?:ing)?|hello|hi|dear|regards)(?![a-z])",
    re.I,
)
_LINKED = re.compile(r"^\s*(?:of|and|&|\+|랑|와|과)(?=\s)\s*", re.I)
_LINKING = re.compile(r"(?<=\s)(?:and|&|\+)$", re.I)
_EMPTY_BRACKETS = re.compile(r"[(\[{]\s*[,.x×*/-]*\s*[)\]}]")
_EDGES = " \t,.;:!?~-_/|*=+…·'\"^><"
# Alone; beside other jamo it is a word typed as consonants.
_LAUGHTER = re.compile("^[ㅋㅎㅠㅜ]+(?![ㄱ-ㅣ])|(?<![ㄱ-ㅣ])[ㅋㅎㅠㅜ]+$")
_SEPARATOR = re.compile(r"[,，、](?!\d{3}(?!\d))|\s/\s|(?<=[병본개스자])/|\s\+\s")
_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|//.*")  # a note: nothing in it begins an item
_INSTEAD = re.compile(r"(?<!\S)[^\s()\[\]]+\s*(?:말고|아니고|아닌|빼고)(?:요)?(?![가-힣])")  # 375 말고 750
_LATIN_TOKEN = re.compile(r"(?<![a-z\d])(\d{0,4})([a-z]{3,})(?![a-z\d])", re.I)
_EACH = re.compile(rf"(?<![가-힣])각(?:각|기)?\s*(?=\d|(?:{_COUNT})\s*(?:{_BOTTLE}|{_BOX}))", re.I)
_CIRCLED = re.compile("[①-⑳❶-❿➀-➓]")
_NOT_JAMO = re.compile("[^\u3131-\u318e]+")
_WORD = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Line:
    """One line, read. `text` names the item; a vintage stays in it, as four digits, for retrieval to prefer."""

    text: str
    quantity: int | None = None
    unit: str | None = None
    vintage: int | None = None

    @property
    def names_something(self) -> bool:
        return bool(_WORD.search(self.text)) or bool(re.search(r"\d{4}", self.text) and self.vintage is None)


class OrderLines:
    """Splits an order into lines. `max_lines` is the most that one query may hold."""

    def __init__(self, max_lines: int = 50) -> None:
        self._max_lines = max_lines

    def understand(self, queries: Sequence[Query]) -> list[list[Understood]]:
        """As `serving.ports.Understander`. Raises BadRequest where a text holds more than `max_lines` lines."""
        return [self._understand(query) for query in queries]

    def _understand(self, query: Query) -> list[Understood]:
        raws = [part for line in re.split(r"[\n\r\v\f\x85\u2028\u2029;；]+", query.text) for part in split_items(line)]
        read: list[tuple[str, Line]] = []
        for raw in raws:
            line = read_line(raw)
            if line.names_something:
                read.append((raw, line))
            if len(read) > self._max_lines:
                raise BadRequest(
                    f"the text holds more order lines than max_lines = {self._max_lines}: send it in parts",
                    field="query",
                )
        if not read:
            whole = query.text.strip()
            read = [(whole, replace(read_line(whole), text=" ".join(whole.split())))]
        return [
            Understood(replace(query, text=line.text), raw.strip(), line.quantity, line.vintage, line.unit)
            for raw, line in read
        ]


def read_line(raw: str) -> Line:
    """Quantity, unit and vintage of one line, and the words that remain."""
    text = _BULLET.sub("", _compatible(_BULLET.sub("", raw)))
    text = _POLITE.sub(" ", _INSTEAD.sub(" ", _LATIN_TOKEN.sub(_other_layout, text)))
    text, quantity, unit = _take_counted(text)
    text, vintage = _take_year(_NO_YEAR.sub(" ", text))
    text = _tidy(text)
    if quantity is None:
        text, quantity = _take_bare(text)
    text = _tidy(text)
    if vintage is None and (age := _YEAR_OR_AGE.search(text)) and not _AGED.search(text):
        return Line(text, quantity, unit, _full_year(int(age[1])))  # the words stay: 10년 may be of a name
    return Line(f"{text} {vintage}" if vintage and text else text, quantity, unit, vintage)


def _other_layout(found: re.Match[str]) -> str:
    """`gksqud` -> 한병, `6qud` -> 6병, `qnxkremflqslek` -> 부탁드립니다; names stay as typed."""
    flipped = found[1] + (flip_keyboard(found[2]) or "")
    return flipped if _COUNTED.fullmatch(flipped) or _POLITE.fullmatch(flipped) else found[0]


def split_items(line: str) -> list[str]:
    """The items of one physical line; the line itself where it holds one. Commas inside a name do not cut it."""
    plain = _compatible(line)
    asides = _spans(_ASIDE, plain)
    cuts = [(a, b) for a, b in _spans(_SEPARATOR, plain) if not _inside(a, asides)]
    parts = [plain[a:b] for a, b in zip([0, *(b for _, b in cuts)], [*(a for a, _ in cuts), len(plain)], strict=True)]
    parts = [part for part in parts if part.strip()]
    items = _join_parts(parts, line) if len(parts) > 1 else [line]
    return [piece for item in items for piece in _split_counted(item)]


def _spans(pattern: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    return [found.span() for found in pattern.finditer(text)]


def _inside(place: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= place < end for start, end in spans)


def _join_parts(parts: list[str], line: str) -> list[str]:
    """Parts between commas put together to items: each ends with the part that carries its quantity."""
    lines = [read_line(part) for part in parts]
    if (each := _EACH.search(parts[-1])) and all(part.names_something for part in lines):
        return [*(f"{part.strip()} {parts[-1][each.end() :].strip()}" for part in parts[:-1]), parts[-1].strip()]
    if not any(part.quantity for part in lines):
        alone = all(
            re.search("[가-힣]", p) and len(read.text.split()) > 1 for p, read in zip(parts, lines, strict=True)
        )
        return [part.strip() for part in parts] if alone else [line]
    items: list[str] = []
    pending: list[str] = []
    for part, read in zip(parts, lines, strict=True):
        if not read.names_something and not pending and items:
            items[-1] += f", {part.strip()}"
            continue
        pending.append(part.strip())
        if read.quantity:
            items.append(", ".join(pending))
            pending = []
    items += [", ".join(pending)] if pending else []
    return items if len(items) > 1 else [line]


def _split_counted(line: str) -> list[str]:
    """`A 6병 B 12병` is two items: cut behind each quantity, or before each where the line begins with one."""
    plain = _compatible(line)
    asides = _spans(_ASIDE, plain)
    found = [m for m in _COUNTED.finditer(plain) if _count(m) is not None and not _inside(m.start(), asides)]
    if len(found) < 2:
        return [line]
    leads = not _WORD.search(_POLITE.sub("", plain[: found[0].start()]))
    cuts = [m.start() for m in found[1:]] if leads else [m.end() for m in found[:-1]]
    edges = [0, *cuts, len(plain)]
    parts = [plain[a:b] for a, b in pairwise(edges)]
    if all(read_line(part).names_something for part in parts):
        return [_LINKED.sub("", part).strip() for part in parts]
    return [line]


def _count(found: re.Match[str]) -> int | None:
    word = found["count"] or found["glued"]
    number = _COUNTS[word.lower()] if word else int(found["number"])
    return number if 1 <= number <= MOST else None


def _take_counted(text: str) -> tuple[str, int | None, str | None]:
    """The first quantity that has a unit or a mark; all of them leave the text."""
    quantity: int | None = None
    unit: str | None = None
    for found in _COUNTED.finditer(text):
        number = _count(found)
        if number is not None and quantity is None:
            quantity, unit = number, "box" if found["box"] else "bottle"
    if quantity is not None:
        return _COUNTED.sub(" ", text), quantity, unit
    for found in _MARKED.finditer(text):
        number = int(next(group for group in found.groups() if group))
        if 1 <= number <= MOST:
            boxed = re.search(_BOX, found[0], re.I)
            named = re.search(rf"{_BOTTLE}", found[0], re.I)
            return (
                f"{text[: found.start()]} {text[found.end() :]}",
                number,
                "box" if boxed else "bottle" if named else None,
            )
    return text, None, None


def _take_year(text: str) -> tuple[str, int | None]:
    if found := _YEAR.search(text):
        year = int(found[1])
    elif found := _SHORT_YEAR.search(text):
        year = _full_year(int(found[1] or found[2] or found[3]))
    else:
        return text, None
    return f"{text[: found.start()]} {text[found.end() :]}", year


def _full_year(two_digits: int) -> int:
    return two_digits + (2000 if two_digits <= 35 else 1900)


def _take_bare(text: str) -> tuple[str, int | None]:
    """A number at the end, or a likely one at the beginning, of a line that names no unit."""
    if (found := _TRAILING.search(text)) and not _NAME_NUMBER.search(text[: found.start()]):
        number = int(found[1])
        if number and number not in VOLUMES_ML and (number < 100 or number % 6 == 0 or number % 10 == 0):
            return text[: found.start()], number
    if found := _LEADING.match(text):
        number = int(found[1])
        if number and (number <= 12 or number % 6 == 0 or number % 10 == 0):  # 19 Crimes is a name
            return text[found.end() :], number
    return text, None


def _compatible(text: str) -> str:
    """NFKC, but single jamo stay as typed: NFKC would make them conjoining ones, which few fonts and models know.
    White space becomes single spaces, which also bounds what the patterns below may try."""
    text = _CIRCLED.sub("•", text)  # NFKC would make a number of the item of ①
    plain = _NOT_JAMO.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return " ".join(plain.split())


def _tidy(text: str) -> str:
    text = _EMPTY_BRACKETS.sub(" ", text)
    return _trim(_LINKING.sub("", _trim(_LINKED.sub("", _trim(" ".join(text.split()))))))


def _trim(text: str) -> str:
    while (shorter := _LAUGHTER.sub("", text.strip(_EDGES))) != text:
        text = shorter
    return text
