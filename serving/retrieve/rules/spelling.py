"""How words are spelled for comparison: normal form, words, jamo letters, weighted jamo symbols, keyboard flip.

Called by the rules index and search. Pure. Hangul is compared jamo by jamo, because one wrong key changes one jamo of a
syllable; jamo that sound or are typed alike share a symbol, so that a plain edit distance is the weighted one.
"""

from __future__ import annotations

import re
import unicodedata

CONSONANTS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = ("", "ㄱ", "ㄲ", "ㄱㅅ", "ㄴ", "ㄴㅈ", "ㄴㅎ", "ㄷ", "ㄹ", "ㄹㄱ", "ㄹㅁ", "ㄹㅂ", "ㄹㅅ", "ㄹㅌ", "ㄹㅍ",
          "ㄹㅎ", "ㅁ", "ㅂ", "ㅂㅅ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅊ", "ㅋ", "ㅌ", "ㅍ", "ㅎ")  # fmt: skip

_MARKS = re.compile("[\u0300-\u036f]+")
_APOSTROPHES = re.compile("['’‘`´]")
_WORDS = re.compile(r"[가-힣\u1100-\u11ff]+|[0-9]+|(?:(?![가-힣\u1100-\u11ff])[^\W\d_])+")
_HANGUL = re.compile("[가-힣\u1100-\u11ff]")

_LETTERS = {
    **{0x1100 + i: c for i, c in enumerate(CONSONANTS)},
    **{0x1161 + i: v for i, v in enumerate(VOWELS)},
    **{0x11A7 + i: f for i, f in enumerate(FINALS) if f},
    0x110B: "",  # the silent consonant: 이 and ㅣ are one letter
}
_ALL_LETTERS = {**_LETTERS, 0x110B: "ㅇ"}
_INITIALS = {0x1100 + i: c for i, c in enumerate(CONSONANTS)}

_ALIKE = (
    "ㄱㄲㅋ", "ㄷㄸㅌ", "ㅂㅃㅍ", "ㅈㅉㅊ", "ㅅㅆ", "ㅐㅔㅒㅖㅚㅙㅞ", "ㅏㅑㅘ", "ㅓㅕㅝ", "ㅗㅛ", "ㅜㅠㅡ", "ㅣㅟㅢ",
    "ckq", "sz", "iy", "vw", "gj",
)  # fmt: skip
_CROSSING = ("ㅗㅜ", "ㅓㅡ")  # alike as well, though of two classes above: they share the second symbol instead


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


def symbols(spelled: str) -> str:
    """Two symbols per letter, the first shared by letters that are alike: an edit distance over symbols, halved, is
    the weighted distance over letters (ㄱ to ㅋ costs one half, ㄱ to ㅁ costs one)."""
    return spelled.translate(_SYMBOLS)


# --- keyboard layout ---------------------------------------------------------------------------------------------
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
    jamo = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", word)).translate(_ALL_LETTERS)
    keys = [_TYPED.get(k) for c in jamo for k in _SPLIT.get(c, c)]
    return "".join(k for k in keys if k).lower() if keys and all(keys) else None
