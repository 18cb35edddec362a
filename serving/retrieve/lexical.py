"""Lexical search: BM25F over the postings of a release, plus the rows that were added while it serves.

Wired as a `ports.Source` for sources with engine `lexical`; reads what `components.lexical` wrote. Scores are raw
BM25F, above 0 and without an upper limit: fusion scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.components.lexical import NAME_WORDS, Features, Scoring, load_scoring, name_feature, word_features, words
from serving.ports import Hits, Mask
from serving.schema import Item, Query

Postings = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Rows, ascending, and what each scores for one feature."""


class LexicalSource:
    """Readers take no lock: arrays are replaced, never written in place, and the number of rows grows last, so that a
    row is seen with all its features or not at all.

    Added rows are scored with the statistics of the snapshot (idf, mean lengths); a feature that only they have counts
    as unseen. The next index counts them in.
    """

    def __init__(self, scoring: Scoring, features: Features, starts: NDArray[np.int64], postings: Postings) -> None:
        self._scoring = scoring
        self._features = features
        self._starts = starts
        self._postings = postings
        self._added: dict[int, Postings] = {}
        self._rows = scoring.rows

    @classmethod
    def load(cls, folder: Path) -> LexicalSource:
        """Maps the arrays: replicas on one machine share their memory. Raises PhaseFailed for another format."""
        scoring = load_scoring(folder)
        features, starts, rows, scores = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("features", "starts", "rows", "scores")
        )
        return cls(scoring, features, starts, (rows, scores))

    def search(self, queries: Sequence[Query], allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        """As `ports.Source.search`. Rows that share no feature with the query are not returned."""
        return [self._search(query.text, mask, top_k) for query, mask in zip(queries, allowed, strict=True)]

    def add(self, first_row: int, items: Sequence[Item]) -> None:
        """As `ports.Source.add`: rows added before from `first_row` on are replaced. Raises ValueError for a row of the
        snapshot."""
        if first_row < self._scoring.rows:
            raise ValueError(f"row {first_row} is the snapshot's: the first free one is {self._scoring.rows}")
        if first_row < self._rows:
            self._drop_from(first_row)
        new: dict[int, list[tuple[int, float]]] = {}
        for row, item in enumerate(items, start=first_row):
            document, name = self._scoring.document(item)
            idf = self._idf(np.fromiter(document, np.uint64, len(document)))
            for (feature, value), weight in zip(document.items(), idf, strict=True):
                new.setdefault(feature, []).append((row, value * float(weight)))
            if name is not None:
                new.setdefault(name, []).append((row, 1.0))
        for feature, pairs in new.items():
            rows, scores = np.array([r for r, _ in pairs], np.int32), np.array([s for _, s in pairs], np.float32)
            old = self._added.get(feature)
            self._added[feature] = (
                (rows, scores) if old is None else (np.concatenate([old[0], rows]), np.concatenate([old[1], scores]))
            )
        self._rows = first_row + len(items)

    def _drop_from(self, row: int) -> None:
        """Forget the added rows from `row` on: an `add` that another source's fault cut short is repeated."""
        self._rows = row
        for feature, (rows, scores) in list(self._added.items()):
            kept = int(np.searchsorted(rows, row))
            if kept < len(rows):
                self._added[feature] = rows[:kept], scores[:kept]

    def _search(self, text: str, mask: Mask | None, top_k: int) -> Hits:
        # A mask may be older or newer than the rows: what only one of them knows is not searched.
        rows = self._rows if mask is None else min(self._rows, len(mask))
        scores = np.zeros(max(rows, self._scoring.rows), np.float32)
        query_words = words(text)
        features = np.array(list(dict.fromkeys(f for w in query_words for f in word_features(w))), np.uint64)
        places, known = self._find(features)
        for feature, place, there in zip(features.tolist(), places, known, strict=True):
            self._accumulate(scores, feature, place if there else None, 1.0)
        self._add_names(scores, query_words)
        scores = scores[:rows]
        if mask is not None:
            scores = np.where(mask[:rows], scores, np.float32(0))
        return best(scores, top_k)

    def _add_names(self, scores: NDArray[np.float32], query_words: list[str]) -> None:
        """Items whose whole name stands in the query earn a share (`name_bonus`) of what its words could earn at most;
        where the query is the name, all of it, so that no other item comes first. Of overlapping names the first and
        longest counts."""
        n = len(query_words)
        spans = [(i, j) for i in range(n) for j in range(min(i + NAME_WORDS, n), i, -1)]
        names = [name_feature(query_words[i:j]) for i, j in spans]
        places, known = self._find(np.array(names, np.uint64))
        taken = 0
        for (start, end), name, place, there in zip(spans, names, places, known, strict=True):
            if start < taken or not (there or name in self._added):
                continue
            taken = end
            inner = dict.fromkeys(f for word in query_words[start:end] for f in word_features(word))
            most = float(self._idf(np.array(list(inner), np.uint64)).sum()) * (self._scoring.k1 + 1)
            # Stop words earn nothing, but some are names, such as `at`.
            worth = max(most, 1.0) if end - start == n else self._scoring.name_bonus * most
            if worth > 0:
                self._accumulate(scores, name, place if there else None, worth)

    def _find(self, features: Features) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where the features stand in the snapshot, and whether they do."""
        places = np.searchsorted(self._features, features)
        known = np.zeros(len(features), np.bool_)
        inside = places < len(self._features)
        known[inside] = self._features[places[inside]] == features[inside]
        return places, known

    def _idf(self, features: Features) -> NDArray[np.float32]:
        places, known = self._find(features)
        df = np.zeros(len(features), np.int64)
        df[known] = self._starts[places[known] + 1] - self._starts[places[known]]
        return self._scoring.idf(df)

    def _accumulate(self, scores: NDArray[np.float32], feature: int, place: int | None, factor: float) -> None:
        if place is not None:
            span = slice(self._starts[place], self._starts[place + 1])
            scores[self._postings[0][span]] += self._postings[1][span] * np.float32(factor)
        added = self._added.get(feature)
        if added is not None:
            seen = np.searchsorted(added[0], len(scores))
            scores[added[0][:seen]] += added[1][:seen] * np.float32(factor)


def best(scores: NDArray[np.float32], top_k: int) -> Hits:
    """The `top_k` rows that score above 0, best first, the lower row first where they tie."""
    rows = np.flatnonzero(scores > 0)
    found = scores[rows]
    if len(rows) > top_k:
        least = np.partition(found, len(rows) - top_k)[len(rows) - top_k]
        above = rows[found > least]
        rows = np.concatenate([above, rows[found == least][: top_k - len(above)]])
        found = scores[rows]
    order = np.lexsort((rows, -found))
    return Hits(rows[order].astype(np.int64), found[order])
