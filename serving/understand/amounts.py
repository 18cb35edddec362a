"""Amounts as people say them: `만원 이하`, `5천원에서 만오천원 사이`, `8,000원대`, `under 9000 won`; as ranges.

Called by the rules engine. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_DIGITS = dict(zip("일이삼사오육칠팔구", range(1, 10), strict=True))
_TENS = {"십": 10, "백": 100, "천": 1000}
_SCALES = {"천": 1000, "만": 10_000}
_PIECE = r"(?:\d[\d,]*(?:\.\d+)?|[일이삼사오육칠팔구십백천만])"
# 구 is nine, and the end of 대구: a number in words begins a word.
_NUMBER = rf"(?:(?=\d)|(?<![가-힣])){_PIECE}(?:\s?{_PIECE})*"
_SCALED = re.compile(r"\d[\d,]*(?:\.\d+)?|[일이삼사오육칠팔구십백천만]")
AROUND = 0.2
"""`정도`, `around`: this share below and above."""

# What follows an amount; the first that fits. "" stands for an amount alone: what somebody has to spend.
_AFTER = (
    ("lt", r"\s*(?:미만|보다\s*(?:더\s*)?(?:싼|저렴|낮|적|가까)[가-힣]*|안\s*되는)"),
    (
        "lte",
        r"\s*(?:이하|까지|안쪽|안으로|안에서|안에|이내|내로|내에|내외?에서|밑|아래|밖에|으로|있)[가-힣]*|\s*or\s+less",
    ),
    ("gt", r"\s*(?:초과|넘는|넘게)[가-힣]*"),
    ("gte", r"\s*(?:이상|부터)[가-힣]*|\s*or\s+more"),
    ("decade", r"\s*대(?![가-힣]*학)(?:의|로|에|이|는|은)?"),
    ("around", r"\s*(?:정도|쯤|가량|내외|언저리|전후|짜리)[가-힣]*"),
)
_BEFORE = (
    ("lt", r"(?:under|below|less\s+than|cheaper\s+than)\s*"),
    ("gt", r"(?:over|above|more\s+than)\s*"),
    ("lte", r"(?:up\s+to|at\s+most|max(?:imum)?)\s*"),
    ("around", r"(?:약|한|대략|around|about)\s*"),
)


class Amount(NamedTuple):
    """Where in the text it stands, and the range it means."""

    start: int
    end: int
    bounds: dict[str, float]


class AmountReader:
    """Finds amounts in one kind of unit. `units`: as written behind the number -> what one is worth."""

    def __init__(self, units: Mapping[str, float]) -> None:
        self._units = {unit.casefold(): worth for unit, worth in units.items()}
        unit = "|".join(re.escape(u) for u in sorted(self._units, key=len, reverse=True))
        one = rf"(?P<n>{_NUMBER})\s*(?P<u>{unit})(?![a-z])"
        self._one = re.compile(one)
        self._pair = re.compile(
            rf"(?P<n1>{_NUMBER})\s*(?P<u1>{unit})?\s*(?:~|-|–|에서|부터|to)\s*(?P<n2>{_NUMBER})\s*(?P<u2>{unit})(?:\s*사이)?"
            r"(?:까지)?"
        )

    def find(self, text: str) -> Iterator[Amount]:
        """In order; `text` is normalised. Spans do not overlap."""
        place = 0
        for pair in self._pair.finditer(text):
            yield from self._singles(text, place, pair.start())
            first, second = number_of(pair["n1"]), number_of(pair["n2"])
            worth = self._units[pair["u2"]]
            low, high = first * self._units.get(pair["u1"] or "", worth), second * worth
            if first < 10 and not pair["u1"] and pair["n2"][-1] in _SCALES:  # 5~7천원: both are thousands
                low *= _SCALES[pair["n2"][-1]]
            if low <= high:
                yield Amount(pair.start(), pair.end(), {"gte": _whole(low), "lte": _whole(high)})
            place = pair.end()
        yield from self._singles(text, place, len(text))

    def _singles(self, text: str, start: int, end: int) -> Iterator[Amount]:
        for found in self._one.finditer(text, start, end):
            value = number_of(found["n"]) * self._units[found["u"]]
            if value <= 0:
                continue
            begin, last, meaning = found.start(), found.end(), "lte"
            for name, pattern in _AFTER:
                if after := re.compile(pattern).match(text, last, end):
                    meaning, last = name, after.end()
                    break
            else:
                for name, pattern in _BEFORE:
                    if before := re.search(rf"(?<![가-힣a-z]){pattern}$", text[start:begin]):
                        meaning, begin = name, start + before.start()
                        break
            yield Amount(begin, last, _bounds(meaning, value))


def number_of(text: str) -> float:
    """`1만5천` -> 15000, `만오천` -> 15000, `7,000` -> 7000. 0 for what is none."""
    total = section = digit = 0.0
    for piece in _SCALED.findall(text):
        if piece[0].isdigit():
            digit = float(piece.replace(",", ""))
        elif piece in _DIGITS:
            digit = _DIGITS[piece]
        elif piece in _TENS:
            section += (digit or 1) * _TENS[piece]
            digit = 0
        else:  # 만
            total += (section + digit or 1) * 10_000
            section = digit = 0
    return total + section + digit


def _bounds(meaning: str, value: float) -> dict[str, Any]:
    if meaning == "decade":
        return {"gte": _whole(value), "lt": _whole(value + 10 ** math.floor(math.log10(value)))}
    if meaning == "around":
        return {"gte": round(value * (1 - AROUND)), "lte": round(value * (1 + AROUND))}
    return {meaning: _whole(value)}


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
