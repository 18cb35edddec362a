"""Fusion: the candidates of several sources become one list. Pure; `serving.retrieve.retrieval` calls it per query.

Scores are first scaled to 0..1, by what the source's engine gives:

- rules: calibrated probabilities, taken as they are; so are the scores of funnels, which are 1 for their best;
- dense: cosines; at or below `options.floor` (default 0), where unrelated texts lie, they become 0, where a source that
  stayed silent stands too. The share of the rest is kept, so that a weak best match stays weak;
- lexical: BM25 has no upper limit and another range for each query, so a list is divided by its best score. With the
  lowest possible score (0) in place of the lowest seen, that is the theoretical min-max scaling of Bruch, Gai,
  Ingber 2022 (arXiv 2210.11934), who find a convex combination on it ahead of reciprocal ranks, in and out of domain.

weighted is that convex combination; rrf is Cormack, Clarke, Buettcher 2009 (SIGIR, "Reciprocal rank fusion"), weighted
and divided by its maximum. A candidate that a source did not return gets 0 from it; one that gets 0 from every source
is none: nobody speaks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.ports import Hits
from serving.schema import FusionSpec, RetrieveSpec, SourceSpec

Scores = NDArray[np.float64]


class Merged(NamedTuple):
    """A candidate of one or more sources: its fused score, 0..1, the source that gave most of it, and the score, as it
    was, of each source that returned it."""

    row: int
    score: float
    source: str
    scores: Mapping[str, float]


def reaches(score: float, threshold: float) -> bool:
    """Whether a score is at or above a threshold. Scores are float32, and 0.7 as such is 0.69999999: both are compared
    at that precision, so that a score of 0.7 reaches a threshold of 0.7."""
    return bool(np.float32(score) >= np.float32(threshold))


def decided(hits: Hits, spec: FusionSpec) -> bool:
    """Whether a cascade stops here. It compares the score as it is: lexical scores know no threshold, any hit ends."""
    return len(hits.scores) > 0 and reaches(hits.scores[0], spec.threshold)


def scaled(hits: Hits, source: SourceSpec) -> Scores:
    """(k,) scores in 0..1, in the order of `hits`; see above for what each engine needs."""
    scores = hits.scores.astype(np.float64)
    if source.engine == "lexical" and len(scores) and scores[0] > 0:
        scores /= scores[0]
    if source.engine == "dense" and (floor := source.options.get("floor", 0.0)):
        floor = float(np.float32(floor))  # at the precision of the scores, see `reaches`
        scores = (scores - floor) / (1.0 - floor)
    return np.clip(scores, 0.0, 1.0)


class Fusion:
    """The fusion of one app. A source of weight 0 proposes nothing."""

    def __init__(self, spec: RetrieveSpec) -> None:
        self._spec = spec.fusion
        self._sources = {name: source for name, source in sorted(spec.sources.items()) if source.weight > 0}

    def merge(self, hits: Mapping[str, Hits], top_k: int) -> list[Merged]:
        """At most `top_k` candidates, best first. `hits` are those of the sources that were asked.

        Equal scores keep the best place a source gave them (a source may know why one of two equals comes first: the
        vintage that was named, say), then go by row.
        """
        lists = self._heard(hits)
        if not lists:
            return []
        if len(lists) == 1:
            [(name, only)] = lists.items()
            return self._take(name, only, top_k)
        weights = np.array([self._sources[name].weight for name in lists])
        rows = np.unique(np.concatenate([one.rows for one in lists.values()]))
        shares = np.full((len(lists), len(rows)), -1.0)  # -1: not returned, which is less than a share of 0
        places = np.full(len(rows), np.iinfo(np.int64).max)
        for line, (name, one), weight in zip(shares, lists.items(), weights / weights.sum(), strict=True):
            at = np.searchsorted(rows, one.rows)
            line[at] = weight * self._worth(name, one)
            places[at] = np.minimum(places[at], np.arange(len(at)))
        fused = np.minimum(np.maximum(shares, 0.0).sum(axis=0), 1.0)
        best = np.lexsort((rows, places, -fused))[: min(top_k, np.count_nonzero(fused))]
        names, givers = list(lists), shares[:, best].argmax(axis=0)
        chosen = rows[best].tolist()
        said = {name: dict(zip(one.rows.tolist(), one.scores.tolist(), strict=True)) for name, one in lists.items()}
        return [
            Merged(row, score, names[giver], {name: by_row[row] for name, by_row in said.items() if row in by_row})
            for row, score, giver in zip(chosen, fused[best].tolist(), givers.tolist(), strict=True)
        ]

    def _take(self, name: str, hits: Hits, top_k: int) -> list[Merged]:
        """The hits of a source that stands alone: its order is the order, and its scores, scaled, are the scores."""
        worth = np.minimum(self._worth(name, hits)[:top_k], 1.0).tolist()
        rows, raw = hits.rows[:top_k].tolist(), hits.scores[:top_k].tolist()
        found = zip(rows, worth, raw, strict=True)
        return [Merged(row, score, name, {name: said}) for row, score, said in found if score > 0]

    def _heard(self, hits: Mapping[str, Hits]) -> dict[str, Hits]:
        """The lists that count, in an order that does not depend on the caller's."""
        if self._spec.method == "cascade":
            for name in self._spec.order:
                if name in self._sources and name in hits and decided(hits[name], self._spec):
                    return {name: hits[name]}
        return {name: hits[name] for name in self._sources if name in hits}

    def _worth(self, name: str, hits: Hits) -> Scores:
        """(k,) what the source's word counts for each of its candidates, 0..1, before its weight."""
        if self._spec.method == "rrf":
            k = self._spec.rrf_k
            return (k + 1) / (k + 1 + np.arange(len(hits.rows), dtype=np.float64))
        return scaled(hits, self._sources[name])
