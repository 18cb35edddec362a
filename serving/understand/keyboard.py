"""The letters of Hangul and the two-set keyboard they are typed on: what the same keys give in the other layout.

Called by the order reader and by the rules engine. Pure.
"""

from __future__ import annotations

import re
import unicodedata

CONSONANTS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = ("", "ㄱ", "ㄲ", "ㄱㅅ", "ㄴ", "ㄴㅈ", "ㄴㅎ", "ㄷ", "ㄹ", "ㄹㄱ", "ㄹㅁ", "ㄹㅂ", "ㄹㅅ", "ㄹㅌ", "ㄹㅍ",
          "ㄹㅎ", "ㅁ", "ㅂ", "ㅂㅅ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅊ", "ㅋ", "ㅌ", "ㅍ", "ㅎ")  # fmt: skip

# Conjoining jamo, as NFD gives them -> the letters on the keys.
JAMO = {
    **{0x1100 + i: c for i, c in enumerate(CONSONANTS)},
    **{0x1161 + i: v for i, v in enumerate(VOWELS)},
    **{0x11A7 + i: f for i, f in enumerate(FINALS) if f},
}

_KEYS = dict(zip("rRseEfaqQtTdwWczxvgkoiOjpuPhynbml",
                 "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎㅏㅐㅑㅒㅓㅔㅕㅖㅗㅛㅜㅠㅡㅣ", strict=True))  # fmt: skip
_COMPOUND = {"ㅗㅏ": "ㅘ", "ㅗㅐ": "ㅙ", "ㅗㅣ": "ㅚ", "ㅜㅓ": "ㅝ", "ㅜㅔ": "ㅞ", "ㅜㅣ": "ㅟ", "ㅡㅣ": "ㅢ"}
_SPLIT = {compound: pair for pair, compound in _COMPOUND.items()}
_TYPED = {jamo: key for key, jamo in _KEYS.items()}
_SYLLABLE = re.compile(
    f"([{CONSONANTS}])({'|'.join(_COMPOUND)}|[{VOWELS}])"
    f"((?:{'|'.join(f for f in FINALS if len(f) == 2)}|[{''.join(f for f in FINALS if len(f) == 1)}])(?![{VOWELS}]))?"
)


def _compose(match: re.Match[str]) -> str:
    initial, vowel, final = match.groups(default="")
    place = CONSONANTS.index(initial) * 21 + VOWELS.index(_COMPOUND.get(vowel, vowel))
    return chr(0xAC00 + place * 28 + FINALS.index(final))


def flip_keyboard(word: str) -> str | None:
    """What the same keys give in the other layout: `dkssud` <-> 안녕. None where that is no text.

    `word` keeps its case: the shifted keys of the Korean layout are the tense consonants.
    """
    if word.isascii():
        if not word.isalpha():
            return None
        jamo = "".join(_KEYS.get(c) or _KEYS[c.lower()] for c in word)
        composed = _SYLLABLE.sub(_compose, jamo)
        return composed if all("가" <= c <= "힣" for c in composed) else None
    jamo = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", word)).translate(JAMO)
    keys = [_TYPED.get(k) for c in jamo for k in _SPLIT.get(c, c)]
    return "".join(k for k in keys if k).lower() if keys and all(keys) else None
