"""What speaks for each item, and the probability that follows from it.

Called by `source`. Pure. The features are few and each can be read: how much of the query the item explains, how much
of the item the query names, by how much the next other name is behind, what of the query it leaves unexplained and
whether that is a word of any item, whether another bottle size was asked for, and how much there was to go by at all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from serving.retrieve.rules import spelling
from serving.retrieve.rules.index import Index
from serving.retrieve.rules.numbers import STANDARD_ML
from serving.retrieve.rules.reading import Reading

CLOSE = 24  # items whose whole strings are compared
# Order of the candidates: query coverage first, the rest breaks its ties.
RANKING = {"query": 0.60, "item": 0.16, "grams": 0.12, "edit": 0.12}
# What a mismatch costs in that order, and what a year or volume that is named weighs beside the words.
YEAR_OTHER, VOLUME_OTHER, VOLUME_UNASKED, ROSE_UNASKED = 0.05, 0.15, 0.03, 0.18
YEAR_MASS, VOLUME_MASS = 0.15, 0.5
NEWER = 1e-5  # per year: of items that tie, the newest first

# Logistic regression over the features, fitted on what the test split of the wine example has no part in: its dev
# lines, half of a set of order lines written by hand, dev items under heavier noise, by short names, with notes beside
# them and in other sizes, and made-up chat. Each line counts once as it is, once without the producer's items (so
# nothing is right) and once without the item itself (a near miss, weighted low).
FULL = {
    "bias": -7.9,
    "query": 5.1,
    "item": 3.2,
    "margin": 13.1,
    "gap": -7.1,
    "alien": -1.1,
    "other_volume": -5.0,
    "substance": 1.6,
}
PLAIN = {"bias": -4.9, "query": 3.9, "item": 3.6, "margin": 6.7}
WIDEST_MARGIN = 0.25


class Evidence(NamedTuple):
    """Parallel arrays over the candidates, best first. `gap`: the root of what the item leaves unexplained of the words
    that resemble some item's; `alien`: the weight of those that resemble none; `substance`: the weight explained, at
    most 1; `other_volume`: 1 where another volume is named than the item's."""

    rows: NDArray[np.int64]
    query: NDArray[np.float64]
    item: NDArray[np.float64]
    grams: NDArray[np.float64]
    edit: NDArray[np.float64]
    order: NDArray[np.float64]
    margin: NDArray[np.float64]
    gap: NDArray[np.float64]
    alien: NDArray[np.float64]
    other_volume: NDArray[np.float64]
    substance: NDArray[np.float64]


def explained(index: Index, reading: Reading) -> NDArray[np.float64]:
    """(2, items) the weight of the query's pieces that each item explains, over the best way to join them into words:
    by how like they are, and with what is nearly right counted as nearly whole, which leaves what is not explained.
    """
    best = [np.zeros((2, len(index.items)))]
    for end in range(1, len(reading.pieces) + 1):
        most = best[end - 1].copy()  # what an item explains does not shrink with another piece
        for start in range(max(0, end - 4), end):
            matches = reading.spans.get((start, end))
            if matches is not None:
                way = best[start][:, matches.items] + sum(reading.weights[start:end]) * matches.item_worths
                most[:, matches.items] = np.maximum(most[:, matches.items], way)
        best.append(most)
    return best[-1]


def weigh(index: Index, reading: Reading, allowed: NDArray[np.bool_] | None, similar: bool) -> Evidence:
    """The candidates among the allowed rows and what speaks for them. `similar` False: whole words only."""
    rows = len(index.items)
    words, lenient = explained(index, reading)
    facts, fact_mass = _facts(index, reading)
    mass, total = words + facts, sum(reading.weights) + fact_mass
    query = mass / max(total, 1e-9)
    item = np.minimum(1.0, words / index.item_mass)
    joined = spelling.letters("".join(reading.pieces))
    grams = np.zeros(rows)
    if similar and len(index.name_rows):
        names, alike = index.name_grams.similar(joined)
        np.maximum.at(grams, index.name_rows[names], alike)
    preference = _preference(index, reading)
    order = RANKING["query"] * query + RANKING["item"] * item + RANKING["grams"] * grams + preference
    eligible = (words > 0) | (grams > 0.15)
    if allowed is not None:
        eligible[: len(allowed)] &= allowed[:rows]
        eligible[len(allowed) :] = False
    chosen = np.flatnonzero(eligible)
    chosen = chosen[np.argsort(-order[chosen], kind="stable")]
    edit = np.zeros(len(chosen))
    if similar:
        edit[:CLOSE] = _edit(index, reading, chosen[:CLOSE])
    final = order[chosen] + RANKING["edit"] * edit
    if similar:
        final[CLOSE:] = np.minimum(final[CLOSE:], final[:CLOSE].min(initial=np.inf))
    again = np.argsort(-final, kind="stable")
    chosen, edit, final = chosen[again], edit[again], final[again]
    return Evidence(
        rows=chosen, query=query[chosen], item=item[chosen], grams=grams[chosen], edit=edit, order=final,
        margin=_margin(index, chosen, final),
        gap=np.sqrt(np.maximum(0.0, total - (lenient + facts)[chosen] - reading.alien)),
        alien=np.full(len(chosen), reading.alien),
        other_volume=_other_volume(index, reading)[chosen],
        substance=np.minimum(1.0, words[chosen]),
    )  # fmt: skip


def _facts(index: Index, reading: Reading) -> tuple[NDArray[np.float64], float]:
    """(items,) the weight of the year and volume each item has as named, and what they weigh together."""
    year, volume, _ = reading.facts
    mass = YEAR_MASS * (index.years == year) + VOLUME_MASS * (index.volumes == volume)
    return mass, YEAR_MASS * (year is not None) + VOLUME_MASS * (volume is not None)


def _other_volume(index: Index, reading: Reading) -> NDArray[np.float64]:
    """(items,) 1 where another volume is named than the item's."""
    volume = reading.facts.volume_ml
    return np.zeros(len(index.items)) if volume is None else np.asarray(index.volumes != volume, np.float64)


def _preference(index: Index, reading: Reading) -> NDArray[np.float64]:
    year, volume, rose = reading.facts
    worth = NEWER * (index.years - index.years.max(initial=0))
    if year is not None:
        worth = worth - YEAR_OTHER * (index.years != year)
    if not rose:
        worth = worth - ROSE_UNASKED * index.rose
    if volume is not None:
        return np.asarray(worth - VOLUME_OTHER * (index.volumes != volume))
    return np.asarray(worth - VOLUME_UNASKED * (index.volumes != STANDARD_ML))


def _edit(index: Index, reading: Reading, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows,) similarity of the whole query to the nearest of each item's names, 0..1."""
    if not len(rows) or not reading.pieces:
        return np.zeros(len(rows))
    typed = spelling.symbols(spelling.letters("".join(reading.pieces)))
    spans = [(int(index.names_of[r]), int(index.names_of[r + 1])) for r in rows]
    names = [name for first, last in spans for name in index.name_symbols[first:last]]
    alike = cdist([typed], names, scorer=Indel.normalized_similarity, dtype=np.float32)[0]
    best, done = np.zeros(len(rows)), 0
    for i, (first, last) in enumerate(spans):
        best[i] = alike[done : done + last - first].max(initial=0.0)
        done += last - first
    return best


def _margin(index: Index, rows: NDArray[np.int64], order: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much each candidate is ahead of the best one with another name; negative where it is behind."""
    if not len(rows):
        return np.zeros(0)
    same = index.name_key[rows] == index.name_key[rows[0]]
    first = order[same].max()
    ahead = np.where(same, order - order[~same].max(initial=first - WIDEST_MARGIN), order - first)
    return np.asarray(np.clip(ahead, -WIDEST_MARGIN, WIDEST_MARGIN), np.float64)


def probability(evidence: Evidence, weights: dict[str, float]) -> NDArray[np.float64]:
    """(candidates,) in 0..1, not rising along the list: the chance that the candidate is what was meant."""
    logit = weights["bias"] + sum(
        weight * getattr(evidence, name) for name, weight in weights.items() if name != "bias"
    )
    if not len(logit):
        return np.zeros(0)
    return np.asarray(np.minimum.accumulate(1 / (1 + np.exp(-logit))), np.float64)
