"""The quality report of recipes: five scores between 0 and 1, each a plain count against what is known of the lab.

- **structure**: the share of what the form asks for that is there: a name, the right number of notes in each layer,
  each note in a layer that it belongs to, none twice, and the further keys of the form.
- **feasibility**: could it be mixed? The mean of four: percents sum to 100 (each percent off costs 0.05), the share of
  notes that the lab has or that are marked as substitutes, the share within their limits, and the share of positive
  whole percents.
- **coherence**: does it smell of what was asked, and of one piece? The mean of two: the share of the percents in
  families that the brief asks for (those that go with them count half), and the share of pairs of notes whose families
  go together.
- **creativity**: is it more than a copy? The mean of two: 1 minus the greatest overlap with a known recipe (percent in
  common), and the number of families in it, of four. A recipe that cannot be mixed is not creative: the score is
  multiplied by feasibility.
- **diversity**, of several recipes for different briefs: the mean share of notes in which two of them differ (1 minus
  Jaccard). One recipe has none.

`report` says them for a list of recipes; the overall score is their mean. Pure code; no model judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from perfumery import FORMS, LAYERS, Brief, Lab, fit

FURTHER: Mapping[str, tuple[str, ...]] = {
    "basic": (),
    "detailed": ("concentration", "maturation_days"),
    "premium": ("concentration", "maturation_days", "substitutes"),
}
FAMILIES = 4
PERCENT_OFF = 0.05


@dataclass(frozen=True, slots=True)
class Scores:
    structure: float
    feasibility: float
    coherence: float
    creativity: float

    @property
    def mean(self) -> float:
        return sum(asdict(self).values()) / 4


@dataclass(frozen=True, slots=True)
class Report:
    """Means over recipes; `overall` is the mean of the five."""

    structure: float
    feasibility: float
    coherence: float
    creativity: float
    diversity: float
    recipes: int

    @property
    def overall(self) -> float:
        return (self.structure + self.feasibility + self.coherence + self.creativity + self.diversity) / 5


def score(recipe: Any, brief: Brief, form: str, lab: Lab, known: Sequence[Mapping[str, float]] = ()) -> Scores:
    """Of one recipe, whatever its shape: what is no recipe scores 0. `known`: the notes and percents of recipes that
    there were already (`percents`)."""
    if not isinstance(recipe, Mapping) or not _entries(recipe):
        return Scores(0.0, 0.0, 0.0, 0.0)
    feasible = _feasibility(recipe, lab)
    return Scores(
        _structure(recipe, form, lab),
        feasible,
        _coherence(recipe, brief, lab),
        _creativity(recipe, lab, known) * feasible,
    )


def report(scored: Sequence[Scores], recipes: Sequence[Any]) -> Report:
    """Raises ValueError without recipes."""
    if not scored:
        raise ValueError("a report is about one recipe at least")
    means = {name: sum(getattr(s, name) for s in scored) / len(scored) for name in Scores.__slots__}
    return Report(**means, diversity=diversity(recipes), recipes=len(scored))


def diversity(recipes: Sequence[Any]) -> float:
    sets = [frozenset(percents(recipe)) for recipe in recipes]
    pairs = [(one, other) for one, other in combinations(sets, 2) if one or other]
    return sum(1 - len(one & other) / len(one | other) for one, other in pairs) / len(pairs) if pairs else 0.0


def percents(recipe: Any) -> dict[str, float]:
    """Note -> percent."""
    return {e["material"]: _percent(e) for _, e in _entries(recipe)} if isinstance(recipe, Mapping) else {}


def _entries(recipe: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(layer, entry) of everything that looks like one."""
    layers = [(layer, recipe[layer]) for layer in LAYERS if isinstance(recipe.get(layer), list)]
    return [
        (layer, entry)
        for layer, entries in layers
        for entry in entries
        if isinstance(entry, Mapping) and isinstance(entry.get("material"), str)
    ]


def _percent(entry: Mapping[str, Any]) -> float:
    value = entry.get("percent")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _structure(recipe: Mapping[str, Any], form: str, lab: Lab) -> float:
    entries = _entries(recipe)
    names = [entry["material"] for _, entry in entries]
    held = [bool(str(recipe.get("name") or "").strip()), len(set(names)) == len(names)]
    for layer, count in zip(LAYERS, FORMS[form], strict=True):
        held.append(sum(1 for where, _ in entries if where == layer) == count)
    held += [key in recipe for key in FURTHER[form]]
    placed = [lab.notes[e["material"]].layer == layer for layer, e in entries if e["material"] in lab.notes]
    right = sum(placed) / len(placed) if placed else 0.0
    return (sum(held) + right) / (len(held) + 1)


def _feasibility(recipe: Mapping[str, Any], lab: Lab) -> float:
    entries = [entry for _, entry in _entries(recipe)]
    off = abs(sum(map(_percent, entries)) - 100)
    there = [e["material"] in lab.notes or e.get("substitute") is True for e in entries]
    within = [_percent(e) <= lab.notes[e["material"]].most for e in entries if e["material"] in lab.notes]
    whole = [_percent(e) > 0 and _percent(e) == int(_percent(e)) for e in entries]
    limits = sum(within) / len(within) if within else 0.0
    return (max(0.0, 1 - PERCENT_OFF * off) + _share(there) + limits + _share(whole)) / 4


def _coherence(recipe: Mapping[str, Any], brief: Brief, lab: Lab) -> float:
    known = {note: percent for note, percent in percents(recipe).items() if note in lab.notes and percent > 0}
    if not known:
        return 0.0
    asked = sum(percent * fit(lab.notes[note].family, brief.families, lab) for note, percent in known.items())
    pairs = [lab.goes_with(lab.notes[a].family, lab.notes[b].family) for a, b in combinations(known, 2)]
    return (asked / sum(known.values()) + (_share(pairs) if pairs else 1.0)) / 2


def _creativity(recipe: Mapping[str, Any], lab: Lab, known: Sequence[Mapping[str, float]]) -> float:
    mine = percents(recipe)
    families = {lab.notes[note].family for note in mine if note in lab.notes}
    nearest = max((sum(min(p, other.get(note, 0.0)) for note, p in mine.items()) for other in known), default=0.0)
    return (1 - min(1.0, nearest / 100) + min(1.0, len(families) / FAMILIES)) / 2


def _share(held: Sequence[bool]) -> float:
    return sum(held) / len(held) if held else 0.0
