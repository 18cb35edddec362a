"""The index component: the vectors of a release's catalogue, and a graph over them where there are many.

`build_index` is called when a release is indexed; `serving.retrieve.ann.load_vector_source` opens what it wrote. Row i
is row i of the catalogue's snapshot.

Files: `vectors.npy` (n, d) float32, unit rows, read through a memory map, so that the replicas of a machine share one
copy; `hnsw.faiss`, only of kind `ann`: an HNSW graph (Malkov, Yashunin 2016, arXiv 1603.09320) without vectors, which
are those of vectors.npy; `index.json` (IndexInfo), written last: a folder without it is not an index.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from serving.errors import BadRequest, PhaseFailed
from serving.ports import Vectors

FORMAT = 1
EXACT_UP_TO = 20_000
NEIGHBOURS = 16
EF_CONSTRUCTION = 80
CHUNK = 2_000

IndexKind = Literal["exact", "ann"]
Progress = Callable[[int, int], None]
"""(rows done, rows in all)."""


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What `index.json` says. A release whose embedder has another fingerprint is refused at publish and at load."""

    kind: IndexKind
    rows: int
    dimension: int
    embedder_fingerprint: str
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path) -> IndexInfo:
        """Raises PhaseFailed where `folder` holds no index that this version can read."""
        try:
            about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            if about["format"] == FORMAT:
                return cls(**about)
            fault = f"it has format {about['format']}, this version reads {FORMAT}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = repr(error)
        raise PhaseFailed(
            f"index.json of {folder.name!r} cannot be used: {fault}; index the app again", phase="retrieve"
        )


def build_index(
    folder: Path,
    vectors: Vectors,
    embedder_fingerprint: str,
    kind: Literal["auto", "exact", "ann"] = "auto",
    progress: Progress | None = None,
) -> IndexInfo:
    """Write the index of `vectors`, (n, d) float32 with unit rows. kind `auto` is exact up to 20,000 rows.

    The same input gives the same files: the graph is built by one thread, since the order in which threads insert
    shapes it (64,000 x 384 take 9 s on an idle core). Raises BadRequest where a row is not of unit length.
    """
    report = progress or _silent
    _check(vectors)
    rows, dimension = vectors.shape
    chosen: IndexKind = ("ann" if rows > EXACT_UP_TO else "exact") if kind == "auto" else kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    np.save(folder / "vectors.npy", np.ascontiguousarray(vectors))
    if chosen == "ann":
        _build_graph(folder / "hnsw.faiss", vectors, report)
    else:
        (folder / "hnsw.faiss").unlink(missing_ok=True)
    info = IndexInfo(chosen, rows, dimension, embedder_fingerprint)
    (folder / "index.json").write_text(json.dumps(asdict(info), sort_keys=True) + "\n", encoding="utf-8")
    report(rows, rows)
    return info


def _silent(_done: int, _total: int) -> None: ...


def _build_graph(file: Path, vectors: Vectors, report: Progress) -> None:
    faiss.omp_set_num_threads(1)
    graph = faiss.IndexHNSWFlat(vectors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    for start in range(0, len(vectors), CHUNK):
        graph.add(np.ascontiguousarray(vectors[start : start + CHUNK]))
        report(graph.ntotal, len(vectors))
    write: Any = faiss.write_index  # its stub lacks the flags
    write(graph, str(file), faiss.IO_FLAG_SKIP_STORAGE)


def _check(vectors: Vectors) -> None:
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype != np.float32:
        raise BadRequest(
            f"vectors are {vectors.dtype} {vectors.shape}; wanted: float32 (n, dimension)", field="vectors"
        )
    for start in range(0, len(vectors), CHUNK):
        lengths = np.linalg.norm(vectors[start : start + CHUNK], axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
        if len(wrong):
            raise BadRequest(
                f"row {start + wrong[0]} has length {lengths[wrong[0]]:.4g}; the embedder has to give unit rows",
                field="vectors",
            )
