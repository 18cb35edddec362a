"""How a word sounds, roughly, in one alphabet for Hangul and Latin: 찰리스 and Chalice become near strings.

Called by the rules index and search. Pure. Consonants weigh two symbols (class and manner), vowels one, because
transliterations keep the consonants and vary the vowels. French, Italian and Spanish readings disagree on some letters
(ch, j, ll): the code takes the most frequent one in names and leaves the rest to the edit distance.
"""

from __future__ import annotations

import re
import unicodedata

# class letter + manner digit; vowels are bare lower-case letters
_INITIAL = (
    "K1",
    "K3",
    "N0",
    "T1",
    "T3",
    "L0",
    "M0",
    "P1",
    "P3",
    "S1",
    "S1",
    "",
    "S2",
    "S2",
    "S3",
    "K2",
    "T2",
    "P2",
    "H",
)
_VOWEL = ("a", "e", "a", "e", "o", "e", "o", "e", "o", "a", "e", "e", "o", "u", "o", "e", "i", "u", "", "i", "i")
_FINAL = ("", "K1", "K1", "K1S1", "N0", "N0", "N0", "T1", "L0", "L0K1", "L0M0", "L0", "L0", "L0", "L0", "L0", "M0",
          "P1", "P1", "S1", "S1", "N0", "S2", "S3", "K2", "T2", "P2", "")  # fmt: skip
_HANGUL = {
    **{0x1100 + i: code for i, code in enumerate(_INITIAL)},
    **{0x1161 + i: code for i, code in enumerate(_VOWEL)},
    **{0x11A7 + i: code for i, code in enumerate(_FINAL) if i},
}

# Applied in order to a lower-case word; upper-case output is final, so that later rules leave it alone.
_LATIN = tuple((re.compile(pattern), code) for pattern, code in (
    (r"eaux?|aux?(?=$|[^aeiou])", "o"), (r"(?:ai|ay|ei|ey|ae)", "e"), (r"ee|ea|ie$", "i"), (r"ou|oo", "u"),
    (r"oi", "a"), (r"tch|ch", "S3"), (r"sch|sh|sc(?=[eiy])", "S1"), (r"gn", "N0"), (r"gh(?=[ei])", "K1"), (r"gh", ""),
    (r"ph|ff?", "P2"), (r"th", "T2"), (r"ck|cc(?![eiy])|qu|c(?![eiy])|[kq]", "K2"), (r"c+", "S1"),
    (r"ng(?=$|[^aeiouy])", "N0"), (r"g(?=[eiy])|j|z+", "S2"), (r"g+", "K1"), (r"s+", "S1"), (r"x", "K2S1"),
    (r"b+|v", "P1"), (r"p+", "P2"), (r"d+", "T1"), (r"t+", "T2"), (r"l+|r+", "L0"), (r"m+", "M0"), (r"n+", "N0"),
    (r"h", "H"), (r"y", "i"), (r"w", "u"), (r"([aeiou])\1+", r"\1"), (r"(?<=\d)e$", ""),
))  # fmt: skip
_TWICE = re.compile(r"([A-Z]\d)\1+")


def phonetic(word: str) -> str:
    """The code of one normalised word, empty for digits: 찰리스 -> S3aL0iS1, chalice -> S3aL0iS1."""
    if word.isascii():
        code = word if word.isalpha() else ""
        for pattern, replacement in _LATIN:
            code = pattern.sub(replacement, code)
    else:
        code = unicodedata.normalize("NFD", word).translate(_HANGUL)
    return _TWICE.sub(r"\1", code)
