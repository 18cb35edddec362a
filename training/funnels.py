"""Makes the funnel components: what popularity, content, collaborative and contextual sources learn from interactions.

`training.index` calls `make_funnel` for each source of such an engine. Pure: items in the order of the catalogue,
interactions in the order of time, and the same of both give the same bytes. What happened weighs half as much each
`half_life_days` before the newest event, so that no clock is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from serving.components.funnel import (
    Feature,
    Funnel,
    feature_matrix,
    features_of,
    slot_of,
    unit_rows,
    with_matrix,
)
from serving.components.rank_features import number_of
from serving.schema import AppSpec, ContextSpec, Item, SourceSpec
from serving.schema.app_spec import FUNNELS
from training.interactions import Interaction, Interactions

VIEWS, ORDERS = frozenset({"view", "click", "favorite"}), frozenset({"order", "select"})
DAY_S = 86_400.0
BANDS = 5
"""Of a number attribute, by its quantiles over the catalogue."""
ROWS_AT_ONCE = 1000


def make_funnel(spec: AppSpec, source: SourceSpec, items: Sequence[Item], interactions: Interactions) -> Funnel:
    """Of what a source of app.yaml asks for; interactions with items that are gone are left out."""
    options = FUNNELS[source.engine] | dict(source.options)
    made = _Maker(spec, items, interactions, options)
    if source.engine == "popularity":
        return made.popularity()
    if source.engine == "collaborative":
        return made.collaborative()
    if source.engine == "contextual":
        assert spec.record is not None  # AppSpec holds it
        return made.contextual({name: spec.record.fields[name] for name in source.context})
    return made.content()


@dataclass(frozen=True)
class _Maker:
    spec: AppSpec
    items: Sequence[Item]
    interactions: Interactions
    options: Mapping[str, float]

    @cached_property
    def ids(self) -> list[str]:
        return [item.id for item in self.items]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {item_id: place for place, item_id in enumerate(self.ids)}

    @cached_property
    def _rows(self) -> list[Interaction]:
        return [row for row in self.interactions.rows if row.item in self._place]

    @cached_property
    def _decay(self) -> NDArray[np.float64]:
        """(rows,)"""
        at = np.array([row.at_s for row in self._rows], np.float64)
        if not len(at):
            return at
        return np.asarray(0.5 ** ((at.max() - at) / (self.options["half_life_days"] * DAY_S)), np.float64)

    @cached_property
    def _worth(self) -> NDArray[np.float64]:
        """(rows,) the decayed reward of each row; what was turned down counts nothing."""
        reward = self.spec.feedback.reward
        return np.array([max(0.0, reward.get(row.event, 0.0)) for row in self._rows], np.float64) * self._decay

    def _per_item(self, weights: NDArray[np.float64], which: Iterable[bool]) -> NDArray[np.float64]:
        chosen = np.fromiter(which, np.bool_, len(self._rows))
        places = np.array([self._place[row.item] for row in self._rows], np.int64)
        return np.asarray(np.bincount(places[chosen], weights[chosen], minlength=len(self.ids)), np.float64)

    def popularity(self) -> Funnel:
        """Looked at and ordered, each against the item that was most."""
        scores = np.zeros(len(self.ids))
        for name, events in (("views", VIEWS), ("orders", ORDERS)):
            counted = self._per_item(self._decay, (row.event in events for row in self._rows))
            scores += self.options[name] * counted / max(counted.max(initial=0.0), 1e-12)
        share = scores / max(self.options["views"] + self.options["orders"], 1e-12)
        return Funnel("popularity", self.ids, {"scores": share.astype(np.float32)})

    @cached_property
    def _people(self) -> list[str]:
        liked = zip(self._rows, self._worth, strict=True)
        return sorted({row.user for row, worth in liked if row.user and worth > 0})

    @cached_property
    def _chosen(self) -> sp.csr_matrix:
        """(people, items) float32: what each chose, by how much; growing ever slower, so that one habit is not all."""
        row_of = {name: row for row, name in enumerate(self._people)}
        known = [n for n, row in enumerate(self._rows) if row.user in row_of and self._worth[n] > 0]
        rows = [row_of[self._rows[n].user] for n in known]
        columns = [self._place[self._rows[n].item] for n in known]
        shape = (len(row_of), len(self.ids))
        matrix = sp.csr_matrix((self._worth[known], (rows, columns)), shape=shape)
        matrix.sum_duplicates()
        return sp.csr_matrix(matrix.log1p(), dtype=np.float32)

    def collaborative(self) -> Funnel:
        """Neighbours of people and of items by cosine, shrunk where few chose both (Bell, Koren 2007, "Scalable
        Collaborative Filtering with Jointly Derived Neighborhood Interpolation Weights")."""
        most, shrinkage = int(self.options["neighbours"]), self.options["shrinkage"]
        people = neighbours(self._chosen, most, shrinkage)
        items = neighbours(sp.csr_matrix(self._chosen.T), most, shrinkage)
        arrays = with_matrix("chosen", self._chosen) | with_matrix("people", people) | with_matrix("items", items)
        about = {name: self.options[name] for name in ("users", "items")}
        return Funnel("collaborative", self.ids, arrays, about, self._people)

    def content(self) -> Funnel:
        kinds = dict(sorted(self.spec.items.attributes.items()))
        edges = {name: _edges(self.items, name) for name, kind in kinds.items() if kind == "number"}
        counts: dict[Feature, int] = {}
        for item in self.items:
            for feature in features_of(item, kinds, edges):
                counts[feature] = counts.get(feature, 0) + 1
        # What nearly every item has tells little of a taste (Sparck Jones 1972).
        weights = {f: float(np.log1p(len(self.items) / n)) for f, n in sorted(counts.items())}
        profiles = unit_rows(sp.csr_matrix(self._chosen @ feature_matrix(self.items, kinds, edges, weights)))
        about = {
            "kinds": kinds,
            "edges": edges,
            "features": [[*feature, weight] for feature, weight in weights.items()],
            **{name: self.options[name] for name in ("asked", "profile")},
        }
        return Funnel("content", self.ids, with_matrix("profiles", profiles), about, self._people)

    def contextual(self, fields: Mapping[str, ContextSpec]) -> Funnel:
        """The share of each item in what was chosen in a context, drawn towards its share in everything by `smoothing`
        imagined choices."""
        slots, smoothing = max(1, int(self.options["slots"])), self.options["smoothing"]
        places = np.array([self._place[row.item] for row in self._rows], np.int64)
        overall = np.bincount(places, self._worth, minlength=len(self.ids))
        overall = overall / max(overall.sum(), 1e-12)
        arrays: dict[str, NDArray[Any]] = {}
        about: list[dict[str, Any]] = []
        for number, (name, field) in enumerate(fields.items()):
            low, high = (0.0, field.cycle) if field.cycle is not None else (field.min, field.max)
            one: dict[str, Any] = {"name": name, "choices": list(field.choices), "low": low or 0.0, "high": high or 0.0}
            count = len(field.choices) or slots
            found = [
                slot_of(row.record.get(name), one["choices"], one["low"], one["high"], slots) for row in self._rows
            ]
            here = np.array([-1 if slot is None else slot for slot in found], np.int64)
            chosen = np.zeros((count, len(self.ids)))
            np.add.at(chosen, (here[here >= 0], places[here >= 0]), self._worth[here >= 0])
            total = chosen.sum(axis=1, keepdims=True) + max(smoothing, 1e-9)
            arrays[f"context_{number}"] = ((chosen + smoothing * overall) / total).astype(np.float32)
            about.append(one)
        return Funnel("contextual", self.ids, arrays, {"fields": about, "slots": slots})


def neighbours(matrix: sp.csr_matrix, most: int, shrinkage: float) -> sp.csr_matrix:
    """(n, n): per row at most `most` others with their cosine times n / (n + shrinkage), n the columns both have."""
    unit = unit_rows(matrix)
    both = sp.csr_matrix((np.ones_like(unit.data), unit.indices, unit.indptr), shape=unit.shape)
    kept: list[sp.csr_matrix] = []
    for start in range(0, unit.shape[0], ROWS_AT_ONCE):
        block = sp.csr_matrix(unit[start : start + ROWS_AT_ONCE] @ unit.T)
        shared = sp.csr_matrix(both[start : start + ROWS_AT_ONCE] @ both.T)
        block.sort_indices()
        shared.sort_indices()
        block.data = (block.data * (shared.data / (shared.data + shrinkage))).astype(np.float32)
        kept.append(_strongest(block, most, start))
    return sp.csr_matrix(sp.vstack(kept)) if kept else sp.csr_matrix((0, 0), dtype=np.float32)


def _strongest(block: sp.csr_matrix, most: int, first: int) -> sp.csr_matrix:
    """Per row its `most` highest entries, equals by column; row i is not its own neighbour `first + i`."""
    data, indices, indptr = [], [], [0]
    for i in range(block.shape[0]):
        span = slice(block.indptr[i], block.indptr[i + 1])
        values, columns = block.data[span], block.indices[span]
        others = columns != first + i
        values, columns = values[others], columns[others]
        best = np.sort(np.lexsort((columns, -values))[:most])
        data.append(values[best])
        indices.append(columns[best])
        indptr.append(indptr[-1] + len(best))
    joined = (
        np.concatenate(data) if data else np.empty(0),
        np.concatenate(indices) if indices else np.empty(0, np.int32),
    )
    return sp.csr_matrix((*joined, indptr), shape=block.shape)


def _edges(items: Sequence[Item], name: str) -> list[float]:
    values = np.array([number_of(item.attributes.get(name)) for item in items], np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return []
    return [float(x) for x in np.unique(np.quantile(values, np.linspace(0, 1, BANDS + 1)[1:-1]))]
