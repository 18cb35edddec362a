"""How words are spelled for comparison: normal form, words, jamo letters, weighted jamo symbols.

Called by the rules index and search. Pure. Hangul is compared jamo by jamo, because one wrong key changes one jamo of a
syllable; jamo that sound or are typed alike share a symbol, so that a plain edit distance is the weighted one.
"""

from __future__ import annotations

import re
import unicodedata

from serving.understand.keyboard import CONSONANTS, JAMO, VOWELS

_MARKS = re.compile("[\u0300-\u036f]+")
_APOSTROPHES = re.compile("['’‘`´]")
_WORDS = re.compile(r"[가-힣\u1100-\u11ff]+|[0-9]+|(?:(?![가-힣\u1100-\u11ff])[^\W\d_])+")
_HANGUL = re.compile("[가-힣\u1100-\u11ff]")

_LETTERS = {**JAMO, 0x110B: ""}  # the silent consonant: 이 and ㅣ are one letter
_INITIALS = {0x1100 + i: c for i, c in enumerate(CONSONANTS)}

_ALIKE = (
    "ㄱㄲㅋ", "ㄷㄸㅌ", "ㅂㅃㅍ", "ㅈㅉㅊ", "ㅅㅆ", "ㅐㅔㅒㅖㅚㅙㅞ", "ㅏㅑㅘ", "ㅓㅕㅝ", "ㅗㅛ", "ㅜㅠㅡ", "ㅣㅟㅢ",
    "ckq", "sz", "iy", "vw", "gj",
)  # fmt: skip
_CROSSING = (
    "ㅗㅜ",
    "ㅓㅡ",
    "ㅟㅠ",
    "ㅅㅈ",
)  # alike as well, though of two classes above: they share the second symbol instead


def runs_text(text: str) -> str:
    """Compatibility form without Latin accents and apostrophes; Hangul stays composed, case stays."""
    plain = unicodedata.normalize("NFKC", text)
    if not plain.isascii():
        plain = unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFD", plain)))
    return _APOSTROPHES.sub("", plain)


def normalise(text: str) -> str:
    """As `runs_text`, case folded: the form that words are compared in."""
    return runs_text(text).casefold()


def words(text: str) -> list[str]:
    """Runs of one script (Hangul, digits, other letters) of a normalised text: `lc말보로` is two words."""
    return _WORDS.findall(text)


def is_hangul(word: str) -> bool:
    return bool(_HANGUL.match(word))


def letters(word: str) -> str:
    """One character per jamo or Latin letter."""
    return word if word.isascii() else unicodedata.normalize("NFD", word).translate(_LETTERS)


def initials(word: str) -> str | None:
    """The consonants of a word typed as consonants only (`ㄹㅇㅋ`), else None."""
    typed = word.translate(_INITIALS)
    return typed if typed and all(c in CONSONANTS for c in typed) else None


def first_consonants(word: str) -> str:
    """레이크 -> ㄹㅇㅋ."""
    return "".join(CONSONANTS[(ord(c) - 0xAC00) // 588] for c in word if "가" <= c <= "힣")


def _symbol_table() -> dict[int, str]:
    spare = iter(range(0xE000, 0xF000))
    class_symbol = {c: chr(s) for group, s in zip(_ALIKE, spare, strict=False) for c in group}
    crossing = {c: chr(s) for group, s in zip(_CROSSING, spare, strict=False) for c in group}
    alphabet = CONSONANTS + VOWELS + "abcdefghijklmnopqrstuvwxyz0123456789"
    return {ord(c): (class_symbol.get(c) or chr(next(spare))) + (crossing.get(c) or chr(next(spare))) for c in alphabet}


_SYMBOLS = _symbol_table()


_CLASSES = {letter: symbol[0] for letter, symbol in _SYMBOLS.items()}


def classes(spelled: str) -> str:
    """One symbol per letter, the same for letters that are alike."""
    return spelled.translate(_CLASSES)


def symbols(spelled: str) -> str:
    """Two symbols per letter, the first shared by letters that are alike: an edit distance over symbols, halved, is
    the weighted distance over letters (ㄱ to ㅋ costs one half, ㄱ to ㅁ costs one)."""
    return spelled.translate(_SYMBOLS)
