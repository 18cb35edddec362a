"""The rank phase of one release: its ranker over the items of the live catalogue, and the order that comes of it.

Built by `serving.build`, called by the pipeline with a batch. Until a ranker was trained there is no phase: `make_rank`
gives None, and the order of retrieval stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from registry.errors import ReleaseRefused
from serving.components.catalogue import Catalogue
from serving.compute import compute
from serving.pipeline import Ranking
from serving.ports import Ranker, ToRank
from serving.schema import AppSpec, Candidate, Item, Result, Understood

COMPONENT = "rank"
SCORE = "rank"
"""The name of the ranker's score in `Candidate.scores`."""
ROWS_KEPT = 50_000
"""Items that are kept as they were read."""


class Rank:
    """Satisfies `serving.pipeline.Rank`. `name_of` gives the pseudonym of a user, `weight` is that of the ranker's
    score, 0..1; the rest is the fused score of retrieval."""

    def __init__(self, ranker: Ranker, catalogue: Catalogue, weight: float, name_of: Callable[[str], str]) -> None:
        self._ranker = ranker
        self._catalogue = catalogue
        self._item = lru_cache(maxsize=ROWS_KEPT)(catalogue.item)  # a row never changes: an item that does gets another
        self._weight = weight
        self._name_of = name_of

    async def __call__(self, lines: Sequence[Understood], found: Sequence[Result]) -> list[Result]:
        """Per line its candidates, best first by the mixed score. One that left the catalogue meanwhile is left out;
        an abstention stays one."""
        return await compute(self._rank, lines, found)

    def _rank(self, lines: Sequence[Understood], found: Sequence[Result]) -> list[Result]:
        known = [self._known(result) for result in found]
        asked = [
            ToRank(
                self._name_of(line.query.user or ""), line.query.record, [item for _, item in pairs], line.query.text
            )
            for line, pairs in zip(lines, known, strict=True)
        ]
        scored = zip(found, known, self._ranker.score(asked), strict=True)
        return [
            Result(self._ordered([one for one, _ in pairs], list(map(float, scores))), result.abstained)
            for result, pairs, scores in scored
        ]

    def _known(self, result: Result) -> list[tuple[Candidate, Item]]:
        found = ((candidate, self._catalogue.known_rows([candidate.id])) for candidate in result.candidates)
        return [(candidate, self._item(rows[0])) for candidate, rows in found if rows]

    def _ordered(self, candidates: Sequence[Candidate], scores: Sequence[float]) -> list[Candidate]:
        """Equal scores keep the order of retrieval."""
        mixed = [
            Candidate(
                one.id,
                self._weight * score + (1 - self._weight) * one.score,
                one.source,
                {**one.scores, SCORE: score},
                one.document,
            )
            for one, score in zip(candidates, scores, strict=True)
        ]
        return sorted(mixed, key=lambda one: -one.score)


def make_ranker(spec: AppSpec, folder: Path | None, threads: int = 1) -> Ranker | None:
    """The ranker in `folder`, the component `rank`; None where the app wants none, or none was trained yet. Raises
    ReleaseRefused for a cross-encoder that the release lacks, PhaseFailed for a folder that holds no ranker."""
    if spec.rank is None:
        return None
    if spec.rank.engine == "wide_deep":
        from serving.rank.wide_deep import WideDeepRanker

        return None if folder is None else WideDeepRanker(folder, threads)
    if folder is None:
        raise ReleaseRefused(
            f"rank.engine is 'cross_encoder', but the release has no component {COMPONENT!r}: build it again with "
            f"`palate index {spec.name}`"
        )
    from serving.rank.cross_encoder import CrossEncoderRanker  # torch: only where there is such a ranker

    return CrossEncoderRanker(folder, spec.items.text, threads=threads)


def make_rank(
    spec: AppSpec, folder: Path | None, catalogue: Catalogue, name_of: Callable[[str], str], threads: int = 1
) -> Ranking | None:
    """The phase, or None: then the order of retrieval stands. Raises as `make_ranker`."""
    ranker = make_ranker(spec, folder, threads)
    if ranker is None or spec.rank is None:
        return None
    return Ranking(Rank(ranker, catalogue, spec.rank.weight, name_of), spec.rank.candidates, spec.rank.top_k)
