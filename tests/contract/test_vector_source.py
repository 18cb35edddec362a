"""Every VectorSource against a brute-force reference: masks, adds, empty batches, more wanted than there is."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.components.index import build_index
from serving.ports import Hits, Mask, Vectors, VectorSource
from serving.retrieve.ann import load_vector_source

ROWS, DIMENSION = 5_000, 32
Make = Callable[[], VectorSource]


def clustered(rows: int, seed: int) -> Vectors:
    """Made-up vectors in 40 clusters, as sentence embeddings lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIMENSION))
    vectors = centres[random.integers(0, 40, rows)] + 0.6 * random.standard_normal((rows, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


SNAPSHOT = clustered(ROWS, 1)
QUERIES = clustered(200, 2)


@pytest.fixture(scope="module", params=["exact", "ann"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp(request.param)
    build_index(folder, SNAPSHOT, "f", request.param)
    return lambda: load_vector_source(folder)


def reference(vectors: Vectors, query: Vectors, mask: Mask | None, top_k: int) -> Hits:
    rows = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask[: len(vectors)])
    scores = vectors[rows] @ query
    order = np.lexsort((rows, -scores))[:top_k]
    return Hits(rows[order], scores[order])


def check(found: Hits, wanted: Hits, vectors: Vectors, query: Vectors, mask: Mask | None) -> int:
    """Sound in every detail; returns how many of the wanted rows are there."""
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert len(found.rows) == len(found.scores) == len(wanted.rows) == len(set(found.rows.tolist()))
    assert mask is None or mask[found.rows].all()
    np.testing.assert_allclose(found.scores, vectors[found.rows] @ query, atol=1e-5)
    assert (np.diff(found.scores) <= 0).all()
    return len(set(found.rows.tolist()) & set(wanted.rows.tolist()))


def masks(rows: int, seed: int) -> list[Mask | None]:
    random = np.random.default_rng(seed)
    near, far = np.argsort(SNAPSHOT @ QUERIES[0]), np.argsort(-(SNAPSHOT @ QUERIES[0]))
    made: list[Mask | None] = [None, np.ones(rows, np.bool_), np.zeros(rows, np.bool_)]
    made += [random.random(rows) < ratio for ratio in (0.9, 0.5, 0.1, 0.01, 0.001)]
    for order in (near, far):
        for count in (4_000, 2_500, 600, 7, 1):
            mask = np.zeros(rows, np.bool_)
            mask[order[:count]] = True
            made.append(mask)
    return made


@pytest.mark.parametrize("top_k", [1, 10, 100, ROWS + 7])
def test_top_k_under_every_kind_of_mask(make: Make, top_k: int) -> None:
    source = make()
    kept = wanted_in_all = 0
    for mask in masks(ROWS, 3):
        batch = QUERIES[:9]
        for query, found in zip(batch, source.search(batch, [mask] * 9, top_k), strict=True):
            wanted = reference(SNAPSHOT, query, mask, top_k)
            kept += check(found, wanted, SNAPSHOT, query, mask)
            wanted_in_all += len(wanted.rows)
    assert kept >= 0.99 * wanted_in_all


def test_unfiltered_recall_at_10_is_99_percent(make: Make) -> None:
    found = [make().search(QUERIES[i : i + 1], [None], 10)[0] for i in range(len(QUERIES))]
    wanted = [reference(SNAPSHOT, query, None, 10) for query in QUERIES]
    assert sum(len(set(f.rows) & set(w.rows)) for f, w in zip(found, wanted, strict=True)) >= 0.99 * 10 * len(QUERIES)


@pytest.mark.parametrize("size", [0, 1, 33])
def test_a_batch_answers_as_its_queries_one_by_one(make: Make, size: int) -> None:
    source = make()
    some = masks(ROWS, 4)
    allowed = [some[i % len(some)] for i in range(size)]
    together = source.search(QUERIES[:size], allowed, 10)
    assert len(together) == size
    for i, found in enumerate(together):
        wanted = reference(SNAPSHOT, QUERIES[i], allowed[i], 10)
        assert check(found, wanted, SNAPSHOT, QUERIES[i], allowed[i]) >= 0.9 * len(wanted.rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 20), max_size=5),
    ratio=st.sampled_from([0.0, 0.002, 0.5, 1.0]),
    hidden=st.integers(0, 25),
    seed=st.integers(0, 1000),
)
def test_added_rows_are_found_as_if_they_had_been_there(
    make: Make, sizes: list[int], ratio: float, hidden: int, seed: int
) -> None:
    source, everything = make(), SNAPSHOT
    for size in sizes:
        # Close to the queries, so that they belong into the answers.
        new = QUERIES[:size] + 0.05 * clustered(size, seed)
        new = (new / np.linalg.norm(new, axis=1, keepdims=True)).astype(np.float32)
        source.add(len(everything), new)
        everything = np.concatenate([everything, new])
    # A mask that was made before the last rows came does not reach them.
    mask = np.random.default_rng(seed).random(max(0, len(everything) - hidden)) < ratio
    for allowed in (mask, None):
        for query, found in zip(QUERIES[:3], source.search(QUERIES[:3], [allowed] * 3, 10), strict=True):
            wanted = reference(everything, query, allowed, 10)
            assert check(found, wanted, everything, query, allowed) >= len(wanted.rows) - 1


def test_an_add_that_is_repeated_replaces_and_does_not_double(make: Make) -> None:
    source = make()
    source.add(ROWS, QUERIES[:3])
    source.add(ROWS, QUERIES[:3])
    source.add(ROWS + 1, QUERIES[5:7])
    everything = np.concatenate([SNAPSHOT, QUERIES[:1], QUERIES[5:7]])
    for query in QUERIES[:8]:
        found = source.search(query[None], [None], 5)[0]
        check(found, reference(everything, query, None, 5), everything, query, None)


def test_an_add_that_does_not_fit_is_refused_and_changes_nothing(make: Make) -> None:
    source = make()
    with pytest.raises(ValueError, match="do not go after"):
        source.add(ROWS, np.ones((1, DIMENSION + 1), np.float32))
    with pytest.raises(ValueError, match="do not go after"):
        source.add(ROWS - 1, QUERIES[:1])
    assert len(source.search(QUERIES[:1], [None], ROWS + 5)[0].rows) == ROWS


def test_readers_see_whole_adds_while_a_writer_adds(make: Make) -> None:
    """Each add brings one row that equals a query: from then on, and not before, it is that query's best."""
    source = make()
    added = 0
    failures: list[str] = []
    done, searched = threading.Event(), threading.Semaphore(0)

    def read() -> None:
        while not done.is_set():
            before = added
            found = source.search(QUERIES[:40], [None] * 40, 1)
            for i in range(before):
                if found[i].rows[0] != ROWS + i:
                    failures.append(f"row {ROWS + i} was added but is not found")
            searched.release()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(40):
        source.add(ROWS + i, QUERIES[i : i + 1])
        added = i + 1
        assert searched.acquire(timeout=30)
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_vectors_come_back_by_row(make: Make) -> None:
    source = make()
    added = clustered(3, 7)
    source.add(ROWS + 2, added)
    assert source.dimension == DIMENSION
    rows = [ROWS + 4, 0, ROWS - 1, 0]
    np.testing.assert_array_equal(source.vectors(rows), np.stack([added[2], *SNAPSHOT[[0, ROWS - 1, 0]]]))
    assert source.vectors([]).shape == (0, DIMENSION)
    for unknown in (-1, ROWS, ROWS + 5):
        with pytest.raises(IndexError):
            source.vectors([unknown])
