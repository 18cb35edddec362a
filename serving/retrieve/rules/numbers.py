"""Years, volumes and rosé, which tell items of like names apart: read out of texts and of items.

Called by the rules index and search. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from serving.schema import Item

FIRST_YEAR, LAST_YEAR = 1950, 2035
STANDARD_ML = 750
_YEAR = re.compile(r"(?<!\d)(?<!\d\.)(19[5-9]\d|20[0-2]\d|203[0-5])(?!\d)(?:\s*년산?|\s*빈티지|\s*vintage)?", re.I)
_TWO_DIGITS = r"([0-2]\d|3[0-5]|[5-9]\d)"
_SHORT_YEAR = re.compile(
    rf"(?<!\d)['’‘]{_TWO_DIGITS}(?!\d)"
    rf"|(?<![\d.]){_TWO_DIGITS}(?:\s*(?:년(?:산|도)|빈티지|빈(?!\s*\d\d))(?![가-힣])|['’])(?!\d)"
    r"|(?<![\d.])([5-9]\d)\s*년(?![가-힣])",  # 10년 may be an age: it stays a word
    re.I,
)
_ML = re.compile(r"(?<!\d)(?<!\d\.)(\d{3,4})\s*(?:ml|밀리)|(?<!\d)(?<!\d\.)(187|375|750|1500)(?:\s?짜리)?(?!\d)", re.I)
_LITRES = re.compile(
    r"(?<!\d)(?<!\d\.)(\d(?:\.\d{1,3})?)\s*(?:리터|l(?![a-z])|liters?|litres?)|(?<![\d.])(1\.5)(?![\d.])", re.I
)
_NAMED = re.compile(
    r"(?<![a-z])(?:(더블\s?매그넘|double\s?magnum)|(매그넘|마그넘|magnum|mag)"
    r"|(하프|(?<![가-힣])(?:반\s?병|미니|데미)|half|demi)|((?<![가-힣])피콜로))"
    r"(?:\s*(?:보틀|바틀|사이즈|병|bottle|btl|size))?(?:\s?짜리)?(?:으?로)?(?![a-z가-힣])", re.I)  # fmt: skip
_NAMED_ML = (3000, 1500, 375, 200)
_ROSE = re.compile("로제|로즈와인|로사[도토]|ros[eé](?![a-z])|rosado|rosato", re.I)


class Facts(NamedTuple):
    """What a text or an item says of year and volume, None where it says nothing, and whether it is called rosé."""

    year: int | None
    volume_ml: int | None
    rose: bool = False


def _cut(text: str, found: re.Match[str]) -> str:
    return f"{text[: found.start()]} {text[found.end() :]}"


def _volume(text: str) -> tuple[int | None, str]:
    if found := _NAMED.search(text):
        stated, rest = _volume(_cut(text, found))  # "magnum 1.5l" says it twice
        return stated or _NAMED_ML[(found.lastindex or 1) - 1], rest
    if found := _ML.search(text):
        return int(found[1] or found[2]), _cut(text, found)
    if found := _LITRES.search(text):
        return round(float(found[1] or found[2]) * 1000), _cut(text, found)
    return None, text


def full_year(two_digits: int) -> int:
    """21 -> 2021, 96 -> 1996."""
    return two_digits + (2000 if two_digits <= LAST_YEAR - 2000 else 1900)


def take_facts(text: str) -> tuple[Facts, str]:
    """Year and volume that a text in compatibility form names, and the text without them."""
    volume, rest = _volume(text)
    rose = bool(_ROSE.search(text))
    if found := _YEAR.search(rest):
        year: int | None = int(found[1])
    elif found := _SHORT_YEAR.search(rest):
        year = full_year(int(found[1] or found[2] or found[3]))
    else:
        return Facts(None, volume, rose), rest
    return Facts(year, volume, rose), _cut(rest, found)


def says_rose(words: Sequence[str]) -> bool:
    return any(_ROSE.fullmatch(word) for word in words)


def item_facts(item: Item, text: str) -> Facts:
    """From the fields or attributes that are named for it, else from the item's own text."""
    stated = {**item.attributes, **item.fields}
    said, _ = take_facts(text)
    year = _whole(stated.get("vintage"), FIRST_YEAR, LAST_YEAR)
    volume = _whole(stated.get("volume_ml", stated.get("volume")), 50, 30_000)
    return Facts(said.year if year is None else year, said.volume_ml if volume is None else volume, said.rose)


def _whole(value: Any, lowest: int, highest: int) -> int | None:
    found = re.match(r"\s*(\d+)", str(value)) if value is not None else None
    number = int(found[1][:9]) if found else -1
    return number if lowest <= number <= highest else None
