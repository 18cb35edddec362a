"""The searchable form of a catalogue: spellings, the items they belong to, and n-gram postings over them.

Called by `source` whenever the items change; read by `search`. An entry is one spelling (a word, neighbouring words
written together, their initials, an alias) and belongs to some items with a weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from serving.retrieve.rules import spelling
from serving.retrieve.rules.grams import GramIndex
from serving.retrieve.rules.numbers import STANDARD_ML, Facts, item_facts, take_facts
from serving.retrieve.rules.phonetics import phonetic
from serving.schema import Item

LONGEST_PHRASE = 4  # words written together, or read as initials
ALIAS_TRUST = 0.97  # another spelling of the same words
INITIALS_TRUST = 0.85  # lc, 레찰, ㄹㅇㅋ: several things may share them
DESCRIBES = 0.8  # weight of what the attributes say of an item: white, Marlborough
LONGEST_DESCRIPTION = 3  # words; what is longer is prose
YEAR_WEIGHT = 0.97
# Words that initials leave out: drc for Domaine de la Romanée-Conti.
_SMALL_WORDS = """
    a au aux d da das de del della des di do dos du e el en et la le les of the y 데 델 드 뒤 디 라 레 르 에 엘 의
"""
_PARTICLES = frozenset(_SMALL_WORDS.split())
SHORT_WORD, PARTICLE = 0.5, 0.3  # what such words weigh
INITIALS_MASS = 0.8  # they are as telling as a word, however many words they stand for
NAME_WEIGHT = 0.5  # fields at least this heavy, relative to the heaviest, name the item; the others describe it


class Spelling(NamedTuple):
    """How one item is written: by which words of it, in a field of which weight, and how sure such a spelling is."""

    weight: float
    trust: float
    span: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analysed:
    """One item, read once."""

    id: str
    entries: Mapping[str, Spelling]
    names: tuple[tuple[str, ...], ...]
    name_key: str
    facts: Facts


class Aliases:
    """Groups of spellings that mean the same. Keys are spellings without spaces.

    Spellings come in one order wherever they are gone through, here and below: entries are numbered as they come, and a
    set would number them differently in every process.
    """

    def __init__(self, aliases: Mapping[str, Sequence[str]]) -> None:
        self._groups: dict[str, set[str]] = {}
        for canonical, spellings in aliases.items():
            forms = {"".join(spelling.words(spelling.normalise(form))) for form in (canonical, *spellings)} - {""}
            for form in forms:
                self._groups.setdefault(form, set()).update(forms - {form})

    def of(self, joined: str) -> list[str]:
        return sorted(self._groups.get(joined, ()))


def analyse(item: Item, weights: Mapping[str, float], aliases: Aliases, phrases: bool) -> Analysed:
    """`phrases` False keeps single words only."""
    heaviest = max(weights.values(), default=1.0) or 1.0
    entries: dict[str, Spelling] = {}
    names: list[tuple[str, ...]] = []
    texts = {f: spelling.normalise(str(item.fields[f])) for f in weights if item.fields.get(f) is not None}
    for field, text in texts.items():
        worded = tuple(spelling.words(take_facts(text)[1])) or tuple(spelling.words(text))
        weight = weights[field] / heaviest
        if weight >= NAME_WEIGHT:
            names.append(worded)
        for start in range(len(worded)):
            for end in range(start + 1, min(start + LONGEST_PHRASE, len(worded)) + 1):
                span = worded[start:end]
                if phrases or len(span) == 1:
                    _add(entries, "".join(span), Spelling(weight, 1.0, span))
                for other in aliases.of("".join(span)):
                    _add(entries, other, Spelling(weight, ALIAS_TRUST, span))
        if phrases:
            _add_initials(entries, worded, weight)
    facts = item_facts(item, " ".join(texts.values()))
    _describe(entries, item, facts.year, aliases)
    return Analysed(item.id, entries, tuple(names), "|".join("".join(n) for n in names[:1]), facts)


def _add(entries: dict[str, Spelling], form: str, found: Spelling) -> None:
    known = entries.get(form)
    if form and (known is None or known[:2] < found[:2]):
        entries[form] = found


def _add_initials(entries: dict[str, Spelling], worded: tuple[str, ...], weight: float) -> None:
    """lc for lake chalice, 레찰 for 레이크 찰리스, with and without particles; none where a number is among them."""
    for words in dict.fromkeys((worded, tuple(word for word in worded if word not in _PARTICLES))):
        for start in range(len(words)):
            for end in range(start + 2, min(start + LONGEST_PHRASE, len(words)) + 1):
                span = words[start:end]
                if not any(word[0].isdigit() for word in span):
                    _add(entries, "".join(word[0] for word in span), Spelling(weight, INITIALS_TRUST, span))


def _describe(entries: dict[str, Spelling], item: Item, year: int | None, aliases: Aliases) -> None:
    """The words of the attributes, and the year in two digits: they tell items apart but do not name them."""
    for value in item.attributes.values():
        span = tuple(spelling.words(spelling.normalise(value))) if isinstance(value, str) else ()
        if 0 < len(span) <= LONGEST_DESCRIPTION:
            joined = "".join(span)
            for form in (joined, *aliases.of(joined)):
                _add(entries, form, Spelling(DESCRIBES, ALIAS_TRUST, span))
    if year is not None:
        for form in (f"{year % 100:02}", f"{year % 100:02}년"):
            _add(entries, form, Spelling(YEAR_WEIGHT, ALIAS_TRUST, (str(year),)))


class Index:
    """Immutable after it is made. Arrays over entries (e), over items (n) and over postings (p)."""

    def __init__(self, items: Sequence[Analysed], similar: bool, sounds: bool) -> None:
        self.items = items
        self.row_of = {item.id.casefold(): row for row, item in enumerate(items)}
        self.words_idf = _idf(items)
        self.forms: list[str] = []
        self.entry_of: dict[str, int] = {}
        self._post(items)
        self.letters = [spelling.letters(form) for form in self.forms]
        self.symbols = [spelling.symbols(letters) for letters in self.letters]
        self.by_letters = {letters: e for e, letters in enumerate(self.letters)}
        self.grams = GramIndex([spelling.classes(letters) for letters in self.letters] if similar else [])
        self.by_anagram = {anagram_key(letters): e for e, letters in enumerate(self.letters)} if similar else {}
        self.by_consonants = self._consonants() if similar else {}
        self.sounds = self._phonetic(items) if sounds else []
        self.sound_grams = GramIndex(self.sounds)
        self._name_arrays(items, similar)
        self.longest_form = max((len(form) for form in self.forms), default=0)

    def _post(self, items: Sequence[Analysed]) -> None:
        entry, item, weight = [], [], []
        mass, trust = [], []
        for row, analysed in enumerate(items):
            for form, found in analysed.entries.items():
                number = self.entry_of.setdefault(form, len(self.entry_of))
                if number == len(self.forms):
                    self.forms.append(form)
                    mass.append(0.0)
                    trust.append(0.0)
                weight_of_words = sum(self.words_idf[word] for word in found.span)
                mass[number] = max(mass[number], weight_of_words if found.trust > INITIALS_TRUST else INITIALS_MASS)
                trust[number] = max(trust[number], found.trust)
                entry.append(number)
                item.append(row)
                weight.append(found.weight * found.trust)
        order = np.argsort(np.array(entry, np.int64), kind="stable")
        self.posted_items = np.array(item, np.int64)[order]
        self.posted_weights = np.array(weight, np.float64)[order]
        self.starts = np.searchsorted(np.array(entry, np.int64)[order], np.arange(len(self.forms) + 1))
        self.mass = np.array(mass, np.float64)
        self.trust = np.array(trust, np.float64)

    def _phonetic(self, items: Sequence[Analysed]) -> list[str]:
        """The code of each entry; none for initials, which are not spoken."""
        code = cache(phonetic)
        sounds = [""] * len(self.forms)
        for item in items:
            for form, found in item.entries.items():
                entry = self.entry_of[form]
                if self.trust[entry] > INITIALS_TRUST and not sounds[entry]:
                    as_spelled = found.trust == 1.0
                    sounds[entry] = "".join(map(code, found.span)) if as_spelled else code(form)
        return sounds

    def _consonants(self) -> dict[str, list[int]]:
        """First consonants -> the words and phrases that have them."""
        found: dict[str, list[int]] = {}
        for number, form in enumerate(self.forms):
            if spelling.is_hangul(form) and len(form) > 1:
                found.setdefault(spelling.first_consonants(form), []).append(number)
        return found

    def _name_arrays(self, items: Sequence[Analysed], similar: bool) -> None:
        names = [(row, name) for row, item in enumerate(items) for name in item.names]
        self.name_rows = np.array([row for row, _ in names], np.int64)
        self.name_letters = [spelling.letters("".join(name)) for _, name in names]
        self.name_symbols = [spelling.symbols(letters) for letters in self.name_letters]
        self.name_grams = GramIndex(self.name_letters if similar else [])
        self.names_of = np.searchsorted(self.name_rows, np.arange(len(items) + 1))
        masses = [[sum(self.words_idf[w] for w in name if w in self.words_idf) for name in i.names] for i in items]
        self.item_mass = np.array([min(m, default=1.0) for m in masses], np.float64)
        keys: dict[str, int] = {}
        self.name_key = np.array([keys.setdefault(item.name_key, len(keys)) for item in items], np.int64)
        self.years = np.array([item.facts.year or 0 for item in items], np.int64)
        self.volumes = np.array([item.facts.volume_ml or STANDARD_ML for item in items], np.int64)
        self.rose = np.array([item.facts.rose for item in items], np.bool_)

    def is_word(self, form: str) -> bool:
        """Is it how words are written, not only their initials?"""
        entry = self.entry_of.get(form)
        return entry is not None and bool(self.trust[entry] > INITIALS_TRUST)


def anagram_key(letters: str) -> str:
    """The same for a word and for itself with letters or syllables swapped behind the first letter."""
    return letters[:1] + "".join(sorted(letters[1:])) if len(letters) > 3 else f"={letters}"


def _idf(items: Sequence[Analysed]) -> dict[str, float]:
    """Word -> 0..1: 1 for a word of one item, towards 0 for a word of all."""
    seen = Counter(word for item in items for word in {w for found in item.entries.values() for w in found.span})
    scale = math.log1p(len(items)) or 1.0
    idf = {word: math.log1p(len(items) / count) / scale for word, count in seen.items()}
    return {word: max(0.05, min(1.0, worth) * _substance(word)) for word, worth in idf.items()}


def _substance(word: str) -> float:
    """Less for particles and for words of one syllable or letter. Numbers are not words."""
    if word in _PARTICLES:
        return PARTICLE
    return SHORT_WORD if len(word) == 1 and not word.isdigit() else 1.0
