"""Approximate search over vectors: a FAISS HNSW graph, with masks pushed into the walk.

Wired as a `ports.VectorSource` for dense sources with many rows; `load_vector_source` chooses between it and
`ExactSearch` by what the index says. The graph walks over the mapped vectors of the index
folder itself, so nothing is held twice. Where a mask leaves few rows, they are searched exactly, which is then both
cheaper and complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from serving.components.index import IndexInfo
from serving.errors import PhaseFailed
from serving.ports import Hits, Mask, Vectors
from serving.retrieve.exact import ExactSearch, exact_hits, load_vectors

faiss: Any = _faiss  # its stubs lack most of what is used here

EF_SEARCH = 192
"""Candidates held during a walk. Measured on 24,000 x 384 vectors of package descriptions, ties counted as found:
recall@10 0.995 at 0.3 ms a query. Made-up clusters are easier: there a third of it would do. Queries of people are
harder: on the 618 of `packages`, over 63,666 vectors, recall@10 is 0.946."""


class AnnSearch(ExactSearch):
    """As ExactSearch, but the snapshot is searched in a graph, nearly exactly; added rows are searched exactly."""

    def __init__(self, vectors: Vectors, graph: Any) -> None:
        super().__init__(vectors)
        self._graph = graph

    @classmethod
    def load(cls, folder: Path) -> AnnSearch:
        vectors = load_vectors(folder)
        graph = faiss.read_index(str(folder / "hnsw.faiss"), faiss.IO_FLAG_SKIP_STORAGE)
        if graph.ntotal != len(vectors):
            raise ValueError(f"hnsw.faiss holds {graph.ntotal} rows, vectors.npy {len(vectors)}")
        storage = faiss.IndexFlatIP(vectors.shape[1])
        # A view in place of a copy. It does not own the memory: `_vectors` keeps that alive, the graph its storage.
        storage.codes = faiss.MaybeOwnedVectorUInt8.create_view(
            faiss.swig_ptr(vectors), vectors.nbytes, storage.codes.owner
        )
        storage.ntotal = len(vectors)
        storage.this.disown()
        graph.storage, graph.own_fields = storage, True
        return cls(vectors, graph)

    def _search_snapshot(self, queries: Vectors, mask: Mask | None, top_k: int) -> list[Hits]:
        count = len(self._vectors) if mask is None else int(np.count_nonzero(mask))
        ef = walk_width(count / max(1, len(self._vectors)), top_k)
        if exact_is_cheaper(count, len(queries), ef):
            return super()._search_snapshot(queries, mask, top_k)
        # The setting is the calling thread's. FAISS's own threads would compete with the other requests' for the cores.
        faiss.omp_set_num_threads(1)
        scores, rows = self._graph.search(np.ascontiguousarray(queries), top_k, params=_parameters(mask, ef))
        hits = [Hits(r, s) for r, s in zip(rows, scores, strict=True)]
        for short in np.flatnonzero(rows[:, -1] < 0):
            allowed = None if mask is None else np.flatnonzero(mask)
            hits[short] = exact_hits(self._vectors, queries[short : short + 1], allowed, top_k)[0]
        return hits


def load_vector_source(folder: Path) -> ExactSearch:
    """The search that the index in `folder` was built for. Raises PhaseFailed where it is damaged."""
    info = IndexInfo.load(folder)
    try:
        source = AnnSearch.load(folder) if info.kind == "ann" else ExactSearch.load(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise PhaseFailed(f"the index in {folder.name!r} cannot be read: {error}", phase="retrieve") from error
    if source.shape != (info.rows, info.dimension):
        raise PhaseFailed(
            f"the index in {folder.name!r} holds {source.shape} vectors, its index.json says "
            f"{(info.rows, info.dimension)}; index the app again",
            phase="retrieve",
        )
    return source


def walk_width(allowed_ratio: float, top_k: int) -> int:
    """efSearch for a mask that allows this share of the rows; 0 for none.

    A walk under a mask passes rows that it may not return, so it holds more of them. Measured as above, for ratios from
    0.2 on: 1 / ratio keeps recall@10 above 0.99 even where the mask hides the region around the query.
    """
    return int(max(EF_SEARCH, 3 * top_k) / allowed_ratio) if allowed_ratio else 0


def exact_is_cheaper(rows: int, queries: int, ef: int) -> bool:
    """Measured at 384 dimensions: a walk costs 2 µs for each candidate it holds; exact search 0.3 µs to gather a row,
    and 0.04 µs a row and query."""
    return rows * (0.3 + 0.04 * queries) <= 2.0 * ef * queries


def _parameters(mask: Mask | None, ef: int) -> Any:
    if mask is None:
        return faiss.SearchParametersHNSW(efSearch=ef)
    bits = np.packbits(mask, bitorder="little")
    return faiss.SearchParametersHNSW(efSearch=ef, sel=faiss.IDSelectorBitmap(bits))
