"""The retrieve phase of one release: asks its sources, in order or together, and fuses what they say.

Built by `serving.build`; called by the pipeline with a batch, in the router's process or in a replica of its own. It
also takes catalogue changes, so that sources and rows stay in step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.components.catalogue import Catalogue
from serving.components.record import compose, item_input
from serving.compute import compute
from serving.ports import Expansions, Hits, Mask, Source, Vectors, VectorSource
from serving.retrieve import fusion
from serving.retrieve.rules import RulesSource
from serving.schema import AppSpec, Candidate, Item, Query, Result


@dataclass(frozen=True, slots=True)
class DenseSource:
    """A vector source with the embedder its index was built by: near (in a thread) or far (a Serve handle).

    `embed` is for queries, awaited; `embed_now` for changed items, called from the follower's thread. `record_field` is
    the item field with an item's record, None where the embedder reads text alone.
    """

    vectors: VectorSource
    fields: Sequence[str]
    embed: Callable[[Sequence[str]], Awaitable[Vectors]]
    embed_now: Callable[[Sequence[str]], Vectors]
    record_field: str | None = None

    def item_input(self, item: Item) -> str:
        return item_input(item, self.fields, self.record_field)

    def query_input(self, query: Query) -> str:
        return compose(query.text, query.record if self.record_field is not None else {})


class Retrieval:
    """Async callable over a batch of queries; see `serving.pipeline.Retrieve`."""

    def __init__(self, spec: AppSpec, catalogue: Catalogue, sources: Mapping[str, Source | DenseSource]) -> None:
        self._spec = spec.retrieve
        self._catalogue = catalogue
        self._sources = sources
        self._fuse = fusion.Fusion(spec.retrieve)
        self._writing = threading.Lock()

    async def __call__(self, queries: Sequence[Query]) -> list[Result]:
        masks = self._masks(queries)
        found: list[dict[str, Hits]] = [{} for _ in queries]
        if self._spec.fusion.method == "cascade":
            await self._cascade(queries, masks, found)
        else:
            everyone = range(len(queries))
            await asyncio.gather(*(self._ask(name, everyone, queries, masks, found) for name in self._sources))
        return [self._result(hits, query.top_k) for hits, query in zip(found, queries, strict=True)]

    def apply(self, upserts: Sequence[Item], deletes: Sequence[str]) -> None:
        """Make catalogue changes visible: all of them, or none where it raises. Blocks while the new texts are
        embedded; safe to repeat. Raises BadRequest for an attribute of the wrong kind."""
        with self._writing:
            self._catalogue.check(upserts)
            first = self._catalogue.rows
            if upserts:
                vectors = {
                    name: source.embed_now([source.item_input(item) for item in upserts])
                    for name, source in self._sources.items()
                    if isinstance(source, DenseSource)
                }
                for name, source in self._sources.items():
                    if isinstance(source, DenseSource):
                        source.vectors.add(first, vectors[name])
                    else:
                        source.add(first, upserts)
            # Last: a row is live only once every source knows it.
            self._catalogue.apply(upserts, deletes)

    def set_expansions(self, expansions: Expansions) -> None:
        for source in self._sources.values():
            if isinstance(source, RulesSource):
                source.set_expansions(expansions)

    def _masks(self, queries: Sequence[Query]) -> list[Mask | None]:
        """One mask per different filter: a source searches the queries that share one together."""
        known: dict[str, Mask | None] = {}
        masks = []
        for query in queries:
            key = repr((query.filters, query.like)) if query.filters or query.like else ""
            if key not in known:
                known[key] = self._allowed(query)
            masks.append(known[key])
        return masks

    def _allowed(self, query: Query) -> Mask | None:
        allowed = self._catalogue.allowed(query.filters)
        liked = self._catalogue.known_rows(query.like)
        if not liked:
            return allowed
        others = np.ones(self._catalogue.rows, np.bool_) if allowed is None else allowed.copy()
        others[[row for row in liked if row < len(others)]] = False
        return others

    def _within(self, name: str, masks: Sequence[Mask | None]) -> Sequence[Mask | None]:
        """The masks, narrowed to the items that the source is about (`where`); equal ones stay one object, because a
        source searches the queries that share one together."""
        where = self._spec.sources[name].where
        own = self._catalogue.allowed(where) if where else None
        if own is None:
            return masks
        narrowed: dict[int, Mask] = {}
        for mask in masks:
            if id(mask) not in narrowed:
                rows = len(own) if mask is None else min(len(own), len(mask))  # a row may have come between the two
                narrowed[id(mask)] = own if mask is None else own[:rows] & mask[:rows]
        return [narrowed[id(mask)] for mask in masks]

    async def _vectors(self, source: DenseSource, queries: Sequence[Query]) -> Vectors:
        """Per query the vector to search with: that of its text and record, that of the items it likes, or, with both,
        their mean, in which each liked item counts as much as the text (positive feedback of Rocchio 1971, in The SMART
        Retrieval System, ch. 14). Zeros, which find nothing, where there is neither."""
        if not any(query.like for query in queries):
            return await source.embed([source.query_input(query) for query in queries])
        asked = [i for i, query in enumerate(queries) if query.text or query.record or not query.like]
        embedded = await source.embed([source.query_input(queries[i]) for i in asked]) if asked else ()
        own = dict(zip(asked, embedded, strict=True))
        result = np.empty((len(queries), source.vectors.dimension), np.float32)
        for i, query in enumerate(queries):
            liked = source.vectors.vectors(self._catalogue.known_rows(query.like))
            mean = liked.sum(axis=0) + own.get(i, 0.0)
            result[i] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return result

    async def _cascade(
        self, queries: Sequence[Query], masks: Sequence[Mask | None], found: list[dict[str, Hits]]
    ) -> None:
        undecided: Sequence[int] = range(len(queries))
        for name in self._spec.fusion.order:
            await self._ask(name, undecided, queries, masks, found)
            undecided = [i for i in undecided if not fusion.decided(found[i][name], self._spec.fusion)]
            if not undecided:
                return

    async def _ask(
        self,
        name: str,
        which: Sequence[int],
        queries: Sequence[Query],
        masks: Sequence[Mask | None],
        found: list[dict[str, Hits]],
    ) -> None:
        source, top_k = self._sources[name], self._spec.sources[name].top_k
        asked = [queries[i] for i in which]
        allowed = self._within(name, [masks[i] for i in which])
        if isinstance(source, DenseSource):
            vectors = await self._vectors(source, asked)
            hits = await compute(source.vectors.search, vectors, allowed, top_k)
        else:
            hits = await compute(source.search, asked, allowed, top_k)
        for i, one in zip(which, hits, strict=True):
            found[i][name] = one

    def _result(self, hits: Mapping[str, Hits], top_k: int) -> Result:
        rows = self._catalogue.rows  # a source may know a row before it is live
        candidates: dict[str, Candidate] = {}
        for merged in self._fuse.merge(hits, top_k):
            if merged.row < rows:
                item_id = self._catalogue.ids[merged.row]
                # An item that changes while it is searched may come with its old row and its new one: best first.
                candidates.setdefault(
                    item_id,
                    Candidate(
                        item_id, merged.score, merged.source, merged.scores, self._catalogue.document(merged.row)
                    ),
                )
        best = list(candidates.values())
        abstained = not best or not fusion.reaches(best[0].score, self._spec.fusion.abstain_below)
        return Result(best, abstained)
