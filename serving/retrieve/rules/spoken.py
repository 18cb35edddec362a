"""Letters and digits written out as they are spoken in Korean: 피투 is P2, 디알씨 is DRC, 이팔 is 28.

Called by `reading`. Pure.
"""

from __future__ import annotations

from itertools import product

_LETTERS = {
    "에이": "a", "비": "b", "씨": "c", "시": "c", "디": "d", "이": "e", "에프": "f", "지": "g", "쥐": "g",
    "에이치": "h", "아이": "i", "제이": "j", "케이": "k", "엘": "l", "엠": "m", "엔": "n", "오": "o",
    "피": "p", "큐": "q", "알": "r", "에스": "s", "티": "t", "유": "u", "브이": "v", "더블유": "w",
    "엑스": "x", "와이": "y", "제트": "z", "지트": "z",
    "원": "1", "투": "2", "쓰리": "3", "포": "4", "파이브": "5", "식스": "6", "세븐": "7", "에잇": "8", "나인": "9",
}  # fmt: skip
_DIGITS = dict(zip("영공일이삼사오육칠팔구", "00123456789", strict=True))
LONGEST = 12  # characters
MOST = 16  # readings of one word


def as_written(word: str) -> list[str]:
    """The readings of a word that is nothing but two or more names of digits or of letters; often none."""
    if not 2 <= len(word) <= LONGEST:
        return []
    digits = "".join(_DIGITS.get(character, "?") for character in word)
    return ([] if "?" in digits else [digits]) + [form for form in _tilings(word) if len(form) > 1]


def _tilings(word: str) -> list[str]:
    ends: list[list[str]] = [[""]] + [[] for _ in word]
    for end, start in product(range(1, len(word) + 1), range(len(word))):
        letter = _LETTERS.get(word[start:end]) if start < end else None
        if letter:
            ends[end] = (ends[end] + [form + letter for form in ends[start]])[:MOST]
    return ends[-1]
