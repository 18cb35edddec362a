"""Hard negatives: wrong items that a release's own pipeline finds nearly as good as the right one.

`training.run` makes the miner of the stable release and hands it to `training.dataset`. How negatives are chosen
follows what the makers of sentence-transformers found to work best with `mine_hard_negatives`: walk down the ranking
from its top, leave out whatever scores within 5 % of the right item (it may be right as well, only nobody said so), and
take ten at most. The margin is that of NV-Retriever (Moreira et al. 2024, arXiv 2407.15831).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving import build
from serving.config import ServingConfig
from serving.schema import AppSpec, Query
from training.dataset.mining import Mined, MiningQuery

RELATIVE_MARGIN = 0.05
MOST = 10
DEPTH = 50
"""How far down the ranking is looked."""
BATCH = 32

Rankings = Callable[[Sequence[Query]], list[list[Mined]]]
"""Queries to what is found for them, best first."""


def choose(ranking: Sequence[Mined], right: Collection[str], count: int) -> list[Mined]:
    """The first `count` (MOST at most) of a ranking that score below the best right item by the margin.

    Where no right item is in the ranking, nothing is known to lie below it: the result is empty.
    """
    best = max((score for item, score in ranking if item in right), default=None)
    if best is None:
        return []
    limit = best - RELATIVE_MARGIN * abs(best)
    return [one for one in ranking if one.item not in right and one.score < limit][: min(count, MOST)]


class PipelineMiner:
    """Satisfies `training.dataset.mining.Miner` with anything that ranks; `pipeline_miner` makes it of a release."""

    def __init__(self, rank: Rankings, depth: int = DEPTH) -> None:
        self._rank = rank
        self._depth = depth

    def mine(self, queries: Sequence[MiningQuery], count: int) -> list[list[Mined]]:
        found: list[list[Mined]] = []
        for start in range(0, len(queries), BATCH):
            batch = queries[start : start + BATCH]
            rankings = self._rank([Query(one.text, self._depth, record=one.record) for one in batch])
            found += [choose(ranking, one.right, count) for one, ranking in zip(batch, rankings, strict=True)]
        return found


@contextmanager
def pipeline_miner(spec: AppSpec, components: Mapping[str, Path], config: ServingConfig) -> Iterator[PipelineMiner]:
    """The miner of a release: `components` maps a component's name to its folder. Raises ReleaseRefused."""
    embedders = build.build_embedders(spec, components, config)
    retrieval = build.build_retrieval(spec, components, {n: build.near(spec.name, e) for n, e in embedders.items()})
    pipeline = build.build_pipeline(build.build_understand(spec, components), retrieval)  # unranked: the depth counts
    with asyncio.Runner() as runner:

        def rank(queries: Sequence[Query]) -> list[list[Mined]]:
            answers = runner.run(pipeline.answer(queries))
            return [[Mined(c.id, c.score) for c in answer.lines[0].result.candidates] for answer in answers]

        yield PipelineMiner(rank)
