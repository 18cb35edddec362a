"""The made-up craft of fragrance-lab: its notes, what a brief asks for, and recipes composed by rule.

`lab.py` makes the catalogue and the instructions of it, `quality.py` judges recipes by it, `bench/fragrance.py`
compares models with it. Pure but for `load_lab`; deterministic for a seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

LAYERS = ("top", "middle", "base")
FORMS: Mapping[str, tuple[int, int, int]] = {"basic": (2, 2, 2), "detailed": (3, 3, 3), "premium": (3, 4, 3)}
"""Form -> how many notes each layer has."""
LAYER_PERCENT = ((30, 40, 30), (25, 35, 40), (35, 35, 30), (20, 40, 40))
SHARES = {2: ((60, 40), (50, 50)), 3: ((50, 30, 20), (40, 40, 20)), 4: ((40, 30, 20, 10), (30, 30, 20, 20))}
CONCENTRATIONS = {"eau de cologne": 14, "eau de toilette": 21, "eau de parfum": 30}
"""Concentration -> days of maturation."""
FITS, ACCOMPANIES, STRANGE = 1.0, 0.1, 0.005
"""How gladly a note is taken: of a family that the brief asks for, of one that goes with it, of another."""
DEAR = 30
"""From this price on, a premium recipe names what could stand in for a note."""


@dataclass(frozen=True, slots=True)
class Note:
    """`price` of 10 ml; `most` percent of a recipe."""

    id: str
    ko: str
    layer: str
    family: str
    most: int
    price: float


class Word(NamedTuple):
    """A word of a brief, in both languages, the families it asks for, and the note that it names."""

    en: str
    ko: str
    families: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Lab:
    """What lab.yaml says."""

    notes: Mapping[str, Note]
    families: Mapping[str, str]
    harmony: Mapping[str, frozenset[str]]
    moods: Mapping[str, Word]
    seasons: Mapping[str, Word]
    occasions: Mapping[str, Word]
    accords: Mapping[str, tuple[str, tuple[str, ...]]]
    names: Mapping[str, Sequence[Sequence[str]]]

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """All that a brief can ask with, the longest Korean words first: they are found within others."""
        notes = [Word(n.id.replace("-", " "), n.ko, (n.family,), n.id) for n in self.notes.values()]
        families = [Word(name, ko, (name,)) for name, ko in self.families.items()]
        return tuple(
            sorted([*self.moods.values(), *self.seasons.values(), *families, *notes], key=lambda w: -len(w.ko))
        )

    def of_layer(self, layer: str) -> list[Note]:
        return [note for note in self.notes.values() if note.layer == layer]

    def goes_with(self, one: str, other: str) -> bool:
        return one == other or other in self.harmony[one] or one in self.harmony[other]


def load_lab(file: Path | None = None) -> Lab:
    raw: dict[str, Any] = yaml.safe_load((file or Path(__file__).with_name("lab.yaml")).read_text(encoding="utf-8"))
    notes = {
        name: Note(name, ko, layer, family, most, float(price))
        for layer in LAYERS
        for name, (ko, family, most, price) in raw["notes"][layer].items()
    }
    return Lab(
        notes=notes,
        families={name: ko for name, (ko, _) in raw["families"].items()},
        harmony={name: frozenset(others) for name, (_, others) in raw["families"].items()},
        moods={en: Word(en, ko, tuple(asks)) for en, (ko, asks) in raw["moods"].items()},
        seasons={en: Word(en, ko, tuple(asks)) for en, (ko, asks) in raw["seasons"].items()},
        occasions={en: Word(en, ko, ()) for en, ko in raw["occasions"].items()},
        accords={name: (ko, tuple(made_of)) for name, (ko, made_of) in raw["accords"].items()},
        names=raw["names"],
    )


# ---- What a brief asks for


@dataclass(frozen=True, slots=True)
class Brief:
    """`families`: what it asks for, with how often it does. `notes` it names."""

    text: str
    families: Mapping[str, float]
    notes: tuple[str, ...] = ()


def read_brief(text: str, lab: Lab) -> Brief:
    """By the words of the lab in either language; a brief without any asks for nothing in particular."""
    left, families, notes = f" {text.lower()} ", dict[str, float](), list[str]()
    for word in lab.words:
        for spelling in (f" {word.en}", word.ko):
            if spelling in left and (spelling == word.ko or not left.split(spelling, 1)[1][:1].isalpha()):
                left = left.replace(spelling, " ", 1)
                notes += [word.note] if word.note else []
                for family in word.families:
                    families[family] = families.get(family, 0.0) + 1.0
                break
    return Brief(text, families, tuple(notes))


ENGLISH = (
    "a {mood} perfume for a {season} {occasion}",
    "something {mood} and {other} for the {occasion}",
    "a {mood} {family} perfume",
    "{mood} {season} scent with {note}",
    "{family} perfume with {note}, {mood}",
    "make me a {mood} scent for {season}",
)
KOREAN = (
    "{season} {occasion}에 쓸 {mood} 향수",
    "{occasion}에 어울리는 {mood} 향, {other} 느낌도",
    "{mood} {family} 향수 만들어줘",
    "{note} 들어간 {mood} {season} 향수",
    "{family} 향수, {note} 넣고 {mood} 느낌으로",
    "{season}에 쓸 {mood} 향 추천해줘",
)


def make_brief(rng: random.Random, lab: Lab) -> str:
    """In Korean or English."""
    korean = rng.random() < 0.5
    mood, other = rng.sample(list(lab.moods.values()), 2)
    family, note = rng.choice(list(lab.families)), rng.choice(list(lab.notes.values()))
    season, occasion = rng.choice(list(lab.seasons.values())), rng.choice(list(lab.occasions.values()))
    words = {
        "mood": mood.ko if korean else mood.en,
        "other": other.ko if korean else other.en,
        "family": lab.families[family] if korean else family,
        "note": note.ko if korean else note.id.replace("-", " "),
        "season": season.ko if korean else season.en,
        "occasion": occasion.ko if korean else occasion.en,
    }
    return rng.choice(KOREAN if korean else ENGLISH).format(**words)


# ---- Recipes


@dataclass(frozen=True, slots=True)
class Taste:
    """How a recipe is composed. `care` 0..1: how closely the brief is followed; `shown` notes are taken more gladly."""

    care: float = 1.0
    shown: Sequence[str] = field(default_factory=tuple)


def fit(family: str, wanted: Mapping[str, float], lab: Lab) -> float:
    """1 for a family that is asked for, 0.5 for one that goes with such a family, 0 for another; 1 if none is asked."""
    if not wanted or family in wanted:
        return 1.0
    return 0.5 if any(lab.goes_with(family, other) for other in wanted) else 0.0


def compose(brief: Brief, form: str, lab: Lab, taste: Taste, rng: random.Random) -> dict[str, Any]:
    """A recipe, as the language model is asked to write one: it fits its form, its sum is 100, limits are respected."""
    recipe: dict[str, Any] = {"name": _name(brief, lab, rng)}
    sum_percent = 0
    while sum_percent != 100:  # a choice of notes whose limits leave less than 100 is not taken
        totals = rng.choice(LAYER_PERCENT)
        for layer, count, total in zip(LAYERS, FORMS[form], totals, strict=True):
            notes = _choose(lab.of_layer(layer), count, brief, lab, taste, rng)
            recipe[layer] = [{"material": note.id, "percent": p} for note, p in _percents(notes, total, rng)]
        sum_percent = _fill(recipe, lab)
    if form != "basic":
        concentration = rng.choice(list(CONCENTRATIONS))
        recipe |= {"concentration": concentration, "maturation_days": CONCENTRATIONS[concentration]}
    if form == "premium":
        recipe["substitutes"] = _substitutes(recipe, lab)
    return recipe


def _choose(notes: Sequence[Note], count: int, brief: Brief, lab: Lab, taste: Taste, rng: random.Random) -> list[Note]:
    chosen: list[Note] = [note for note in notes if note.id in brief.notes][:count]
    left = [note for note in notes if note not in chosen]
    while len(chosen) < count:
        weights = [_weight(note, brief, lab, taste) for note in left]
        note = rng.choices(left, weights)[0]
        left.remove(note)
        chosen.append(note)
    return sorted(chosen, key=lambda note: (-note.most, note.id))


def _weight(note: Note, brief: Brief, lab: Lab, taste: Taste) -> float:
    gladly = {1.0: FITS, 0.5: ACCOMPANIES, 0.0: STRANGE}[fit(note.family, brief.families, lab)]
    return (taste.care * gladly + (1 - taste.care) * ACCOMPANIES) * (4.0 if note.id in taste.shown else 1.0)


def _percents(notes: Sequence[Note], total: int, rng: random.Random) -> list[tuple[Note, int]]:
    """Of at most each note's limit; what does not fit is left to `_fill`."""
    shares = rng.choice(SHARES[len(notes)])
    return [(note, min(note.most, round(total * share / 100))) for note, share in zip(notes, shares, strict=True)]


def _fill(recipe: dict[str, Any], lab: Lab) -> int:
    """Bring the sum to 100 as far as limits allow, the base first, then the middle; returns it."""
    entries = [entry for layer in ("base", "middle", "top") for entry in recipe[layer]]
    missing = 100 - sum(entry["percent"] for entry in entries)
    for entry in entries:
        step = min(lab.notes[entry["material"]].most - entry["percent"], missing)
        entry["percent"] += step
        missing -= step
    return 100 - missing


def _name(brief: Brief, lab: Lab, rng: random.Random) -> str:
    family = next(iter(brief.families), None) or rng.choice(list(lab.families))
    korean = any("가" <= letter <= "힣" for letter in brief.text)
    first, second = rng.choice(lab.names[family]), rng.choice(lab.names["second"])
    return " ".join(word[korean] for word in (first, second))


def _substitutes(recipe: Mapping[str, Any], lab: Lab) -> list[dict[str, str]]:
    """For the two dearest notes: the cheapest of the same layer, of the same family if there is one."""
    used = [lab.notes[entry["material"]] for layer in LAYERS for entry in recipe[layer]]
    found = []
    for note in sorted((n for n in used if n.price >= DEAR), key=lambda n: (-n.price, n.id))[:2]:
        others = [n for n in lab.of_layer(note.layer) if n not in used and n.price < note.price]
        near = [n for n in others if n.family == note.family] or others
        found.append({"for": note.id, "use": min(near, key=lambda n: (n.price, n.id)).id})
    return found
