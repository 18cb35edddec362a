"""The index component: what it writes, that it is the same each time, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from registry.content import digest_folder
from serving.components.index import IndexInfo, build_index
from serving.errors import BadRequest, PhaseFailed
from serving.ports import Vectors
from serving.retrieve.ann import AnnSearch, exact_is_cheaper, load_vector_source, walk_width
from serving.retrieve.exact import ExactSearch


def unit_rows(rows: int, dimension: int = 8, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["exact", "ann"])
def test_the_info_is_what_was_built(tmp_path: Path, kind: str) -> None:
    built = build_index(tmp_path, unit_rows(50), "sha256:abc", kind)
    assert built == IndexInfo.load(tmp_path) == IndexInfo(kind, 50, 8, "sha256:abc")
    assert (tmp_path / "hnsw.faiss").exists() == (kind == "ann")
    assert isinstance(load_vector_source(tmp_path), AnnSearch if kind == "ann" else ExactSearch)


def test_auto_is_exact_up_to_20_000_rows(tmp_path: Path) -> None:
    assert build_index(tmp_path / "few", unit_rows(20_000, 2), "f").kind == "exact"
    assert build_index(tmp_path / "many", unit_rows(20_001, 2), "f").kind == "ann"


@pytest.mark.parametrize("kind", ["exact", "ann"])
def test_the_same_vectors_give_the_same_digest(tmp_path: Path, kind: str) -> None:
    vectors = unit_rows(3_000, 16)
    for name in ("one", "two"):
        build_index(tmp_path / name, vectors, "f", kind)
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")
    build_index(tmp_path / "three", vectors[::-1], "f", kind)
    assert digest_folder(tmp_path / "one") != digest_folder(tmp_path / "three")


def test_the_graph_holds_no_second_copy_of_the_vectors(tmp_path: Path) -> None:
    build_index(tmp_path, unit_rows(2_000, 256), "f", "ann")
    assert (tmp_path / "hnsw.faiss").stat().st_size < (tmp_path / "vectors.npy").stat().st_size / 5


def test_an_exact_index_over_an_ann_one_leaves_no_graph(tmp_path: Path) -> None:
    build_index(tmp_path, unit_rows(100), "f", "ann")
    build_index(tmp_path, unit_rows(90), "f", "exact")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "vectors.npy"]


@pytest.mark.parametrize("kind", ["exact", "ann"])
def test_an_empty_catalogue_has_an_index(tmp_path: Path, kind: str) -> None:
    build_index(tmp_path, unit_rows(0), "f", kind)
    source = load_vector_source(tmp_path)
    query = unit_rows(1, seed=1)
    assert len(source.search(query, [None], 5)[0].rows) == 0
    source.add(0, unit_rows(2))
    assert sorted(source.search(query, [None], 5)[0].rows) == [0, 1]


def test_progress_ends_at_all_rows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_index(tmp_path, unit_rows(4_500, 4), "f", "ann", lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[0] == (2_000, 4_500)
    assert seen[-1] == (4_500, 4_500)


@pytest.mark.parametrize(
    "vectors",
    [
        unit_rows(5).astype(np.float64),
        unit_rows(5)[0],
        unit_rows(5) * np.array([[1], [1], [2], [1], [1]], np.float32),
        unit_rows(5) * np.array([[1], [1], [np.nan], [1], [1]], np.float32),
        np.zeros((3, 4), np.float32),
    ],
)
def test_vectors_that_cannot_be_searched_are_refused(tmp_path: Path, vectors: Vectors) -> None:
    with pytest.raises(BadRequest) as refused:
        build_index(tmp_path, vectors, "f")
    assert refused.value.field == "vectors"


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    vectors = unit_rows(5_000)
    vectors[4_321] *= 2
    with pytest.raises(BadRequest, match="row 4321 "):
        build_index(tmp_path, vectors, "f")


def test_a_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "index-a"
    with pytest.raises(PhaseFailed, match="index-a"):
        load_vector_source(folder)
    info = build_index(folder, unit_rows(30), "f", "ann")
    about = json.loads((folder / "index.json").read_text())
    for changed in ({"format": 99}, {"rows": 31}, {"dimension": 9}, {"extra": 1}):
        (folder / "index.json").write_text(json.dumps({**about, **changed}))
        with pytest.raises(PhaseFailed, match="index-a"):
            load_vector_source(folder)
    (folder / "index.json").write_text(json.dumps(about))
    assert load_vector_source(folder).shape == (info.rows, info.dimension)
    np.save(folder / "vectors.npy", unit_rows(29))
    with pytest.raises(PhaseFailed, match="29"):
        load_vector_source(folder)
    (folder / "hnsw.faiss").write_bytes(b"not a graph")
    with pytest.raises(PhaseFailed, match="index-a"):
        load_vector_source(folder)


def test_a_failed_rebuild_leaves_no_index_that_loads(tmp_path: Path) -> None:
    build_index(tmp_path, unit_rows(30), "f", "exact")
    (tmp_path / "vectors.npy").unlink()
    (tmp_path / "vectors.npy").mkdir()  # the write fails, as on a full disk
    with pytest.raises(OSError, match=r"vectors\.npy"):
        build_index(tmp_path, unit_rows(30), "f", "exact")
    with pytest.raises(PhaseFailed):
        IndexInfo.load(tmp_path)


def test_a_narrower_mask_needs_a_wider_walk() -> None:
    widths = [walk_width(ratio, 10) for ratio in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)]
    assert widths == sorted(widths)
    assert walk_width(1.0, 10) == 192
    assert walk_width(1.0, 100) == 300
    assert walk_width(0.0, 10) == 0


def test_few_rows_or_many_queries_are_searched_exactly() -> None:
    assert not exact_is_cheaper(64_000, 1, walk_width(1.0, 10))
    assert exact_is_cheaper(500, 1, walk_width(1.0, 10))
    assert exact_is_cheaper(6_400, 1, walk_width(0.1, 10))
    assert exact_is_cheaper(0, 1, 0)
