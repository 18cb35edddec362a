"""How like a typed word is each known spelling: exact, contained, misspelled, abbreviated, or of the same sound.

Called by `reading`. Pure; reads an `Index`. n-grams propose a few dozen spellings, edit distances compare them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq, Levenshtein
from rapidfuzz.process import cdist

from serving.retrieve.rules import spelling
from serving.retrieve.rules.index import Index, anagram_key
from serving.retrieve.rules.options import Options
from serving.retrieve.rules.phonetics import phonetic

PROPOSED = 48  # spellings compared closely, per word
LEAST = 0.58  # an edit similarity below it is what unrelated words have
SHARPNESS = 1.6  # edit similarity to worth: s ** 1.6 (0.9 -> 0.84, 0.7 -> 0.57)
SWAPPED = 0.85  # the same letters in another order
CONSONANTS = 0.8  # ㄹㅇㅋ for 레이크
SOUND = 0.9  # the worth of a perfect match of sounds
ENOUGH = 0.9  # a spelling this like needs no comparison of sounds
PREFIX = (0.72, 0.28)  # worth of a cut word: at nothing left, and what the share that is left adds
WITHIN = (0.5, 0.4)
SPARSE = (0.35, 0.6)  # letters left out: mrlbrgh


class Matches(NamedTuple):
    """Entries of the index and how like they are: both (k,), the worth in 0..1, in no order. `best` is the worth of
    the best, less where that is an alias or initials. `items`: (m,) the items that have any of those spellings;
    `item_worths`: (2, m) the worth of the best that each has, and that worth made lenient: what is nearly right counts
    as nearly whole."""

    entries: NDArray[np.int64]
    worths: NDArray[np.float64]
    best: float = 0.0
    items: NDArray[np.int64] = np.empty(0, np.int64)
    item_worths: NDArray[np.float64] = np.empty((2, 0))


NOTHING = Matches(np.empty(0, np.int64), np.empty(0))


def match(index: Index, word: str, options: Options) -> Matches:
    """The spellings that `word` may stand for."""
    found = _match(index, word, options)
    useful = found.worths > 0
    if not useful.any():
        return NOTHING
    entries, worths = found.entries[useful], found.worths[useful]
    items, item_worths = _items(index, entries, worths)
    return Matches(entries, worths, float((worths * index.trust[entries]).max()), items, item_worths)


def _items(
    index: Index, entries: NDArray[np.int64], worths: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    counts = index.starts[entries + 1] - index.starts[entries]
    offsets = np.repeat(index.starts[entries] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    best = np.zeros(len(index.items))
    np.maximum.at(best, index.posted_items[offsets], np.repeat(worths, counts) * index.posted_weights[offsets])
    items = np.flatnonzero(best)
    return items, np.stack([best[items], 1 - (1 - best[items]) ** 2])


def _match(index: Index, word: str, options: Options) -> Matches:
    letters = spelling.letters(word)
    exact = index.by_letters.get(letters) if options.jamo else index.entry_of.get(word)
    if word[0].isdigit():  # numbers are never nearly right
        return NOTHING if exact is None else _one(exact, 1.0)
    if not options.jamo:
        return _plain(index, word, exact)
    if consonants := spelling.initials(word):
        found = index.by_consonants.get(consonants, [])
        return Matches(np.array(found, np.int64), np.full(len(found), CONSONANTS))
    parts = [_spelled(index, word, letters)]
    if exact is not None:
        parts.append(_one(exact, 1.0))
    swapped = index.by_anagram.get(anagram_key(letters))
    if swapped is not None:
        parts.append(_one(swapped, SWAPPED))
    if options.phonetic and max(p.worths.max(initial=0.0) for p in parts) < ENOUGH:
        parts.append(_sounding(index, word))
    return Matches(np.concatenate([p.entries for p in parts]), np.concatenate([p.worths for p in parts]))


def _one(entry: int, worth: float) -> Matches:
    return Matches(np.array([entry], np.int64), np.array([worth]))


def _plain(index: Index, word: str, exact: int | None) -> Matches:
    """Equal words, and words that contain the typed one, as a LIKE search finds them."""
    within = [e for e, form in enumerate(index.forms) if word in form and e != exact] if len(word) > 1 else []
    worths = [WITHIN[0] + WITHIN[1] * len(word) / len(index.forms[e]) for e in within]
    if exact is not None:
        within, worths = [exact, *within], [1.0, *worths]
    return Matches(np.array(within, np.int64), np.array(worths, np.float64))


def _spelled(index: Index, word: str, letters: str) -> Matches:
    near = index.grams.nearest(spelling.classes(letters), PROPOSED)
    if not len(near):
        return NOTHING
    forms, starts = [index.letters[e] for e in near], np.array([index.forms[e].startswith(word) for e in near])
    typed = [index.symbols[e] for e in near]
    alike = cdist([spelling.symbols(letters)], typed, scorer=Levenshtein.normalized_similarity, dtype=np.float32)[0]
    worths = np.where(alike >= LEAST, alike.astype(np.float64) ** SHARPNESS, 0.0)
    if len(letters) >= 3:
        np.maximum(worths, _shortened(letters, forms, starts), out=worths)
    return Matches(near, worths)


def _shortened(letters: str, forms: list[str], prefix: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Worth of `letters` as a cut or thinned-out form of each of `forms`; `prefix`: cut behind a syllable."""
    length = len(letters)
    share = np.array([length / len(form) if length < len(form) else 0.0 for form in forms])
    within = np.array([letters in form for form in forms])
    kept = cdist([letters], forms, scorer=LCSseq.similarity, dtype=np.int32)[0] == length
    sparse = kept & np.array([form[:1] == letters[0] for form in forms])
    worth = np.zeros(len(forms))
    for applies, (base, slope) in ((sparse, SPARSE), (within, WITHIN), (prefix, PREFIX)):
        worth = np.where(applies & (share > 0), np.maximum(worth, base + slope * share), worth)
    return worth


def _sounding(index: Index, word: str) -> Matches:
    code = phonetic(word)
    if len(code) < 4:
        return NOTHING
    near = index.sound_grams.nearest(code, PROPOSED // 2)
    if not len(near):
        return NOTHING
    codes = [index.sounds[e] for e in near]
    alike = cdist([code], codes, scorer=Levenshtein.normalized_similarity, dtype=np.float32)[0].astype(np.float64)
    return Matches(near, np.where(alike >= LEAST, SOUND * alike**SHARPNESS, 0.0))
