"""The retrieve phase and the pipeline around it: which sources are asked, how they are fused, and whose fault it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.components.catalogue import Catalogue, build_catalogue
from serving.components.lexical import Scoring
from serving.config import Limits
from serving.errors import BadRequest, PhaseFailed
from serving.fakes import FakeEmbedder
from serving.pipeline import Pipeline
from serving.ports import Hits, Mask, Vectors
from serving.retrieve.exact import ExactSearch
from serving.retrieve.lexical import LexicalSource
from serving.retrieve.retrieval import DenseSource, Retrieval
from serving.router import LoadedRelease, ServedRelease
from serving.schema import AppSpec, Item, Query, Result, Understood
from tests.endpoint import made_up_items, made_up_spec

NO_POSTINGS = (
    np.empty(0, np.uint64),
    np.zeros(1, np.int64),
    (np.empty(0, np.int32), np.empty(0, np.float32)),
)


class Says:
    """A lexical source that gives the same hits to every query, if allowed, and remembers what it was asked."""

    def __init__(self, *hits: tuple[int, float], fault: Exception | None = None) -> None:
        self._hits = hits
        self._fault = fault
        self.asked: list[str] = []

    def search(self, queries: Sequence[Query], allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        self.asked += [query.text for query in queries]
        if self._fault is not None and any(query.text == "bad" for query in queries):
            raise self._fault
        found = []
        for mask in allowed:
            hits = [(row, score) for row, score in self._hits if mask is None or mask[row]][:top_k]
            rows, scores = [row for row, _ in hits], [score for _, score in hits]
            found.append(Hits(np.array(rows, np.int64), np.array(scores, np.float32)))
        return found

    def add(self, first_row: int, items: Sequence[Item]) -> None: ...


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    build_catalogue(tmp_path, made_up_items(), made_up_spec("teas").items.attributes)
    return Catalogue.load(tmp_path)


def spec_of(fusion: dict[str, Any], **engines: dict[str, Any]) -> AppSpec:
    return made_up_spec("teas", retrieve={"sources": engines, "fusion": fusion})


def retrieve(retrieval: Retrieval, *queries: Query) -> list[Result]:
    return asyncio.run(retrieval(queries))


def ids(result: Result) -> list[tuple[str, str]]:
    return [(candidate.id, candidate.source) for candidate in result.candidates]


RULES: dict[str, Any] = {"engine": "rules"}
LEXICAL: dict[str, Any] = {"engine": "lexical"}
CASCADE = {"method": "cascade", "order": ["first", "second"], "threshold": 0.7}


def test_a_source_proposes_only_the_items_it_is_about(catalogue: Catalogue) -> None:
    where = {"category": "coffee"}
    spec = spec_of({"method": "weighted"}, coffees={**LEXICAL, "where": where, "weight": 0.2}, all=LEXICAL)
    rows = tuple((row, 1.0 - row / 100) for row in range(12))
    retrieval = Retrieval(spec, catalogue, {"coffees": Says(*rows), "all": Says((0, 1.0))})
    plain, filtered, nothing = retrieve(
        retrieval, Query("a", 50), Query("b", 50, {"price": {"lte": 5000}}), Query("c", 50, {"category": "tea"})
    )

    def categories(result: Result) -> set[str]:
        found = [c for c in result.candidates if "coffees" in c.scores]
        return {catalogue.item(catalogue.ids.index(c.id)).attributes["category"] for c in found}

    assert categories(plain) == {"coffee"}
    assert categories(filtered) <= {"coffee"}
    assert all(catalogue.item(catalogue.ids.index(c.id)).attributes["price"] <= 5000 for c in filtered.candidates)
    assert categories(nothing) == set(), "the request's own filter on the same attribute holds as well"
    new = Item("NEW", {"ko": "새", "en": "new"}, {"category": "coffee", "price": 1})
    retrieval.apply([new], [])
    [changed] = retrieve(
        Retrieval(spec, catalogue, {"coffees": Says((catalogue.rows - 1, 1.0)), "all": Says()}), Query("a")
    )
    assert [c.id for c in changed.candidates] == ["NEW"]


def test_a_cascade_stops_at_the_first_source_that_is_sure(catalogue: Catalogue) -> None:
    spec = spec_of(CASCADE, first=RULES, second=RULES)
    sure, second = Says((3, 0.75), (4, 0.2)), Says((5, 0.9))
    [result] = retrieve(Retrieval(spec, catalogue, {"first": sure, "second": second}), Query("tea"))
    assert ids(result) == [("TEA003", "first"), ("TEA004", "first")]
    assert second.asked == []

    unsure = Says((3, 0.69))
    [result] = retrieve(Retrieval(spec, catalogue, {"first": unsure, "second": second}), Query("tea"))
    assert ids(result) == [("TEA010", "second")]
    assert second.asked == ["tea"]


def test_a_cascade_where_nobody_is_sure_weighs_them_all(catalogue: Catalogue) -> None:
    spec = spec_of(CASCADE, first=RULES, second=RULES)
    sources = {"first": Says((3, 0.6), (4, 0.5)), "second": Says((4, 0.4))}
    [result] = retrieve(Retrieval(spec, catalogue, sources), Query("tea"))
    assert ids(result) == [("TEA004", "first"), ("TEA003", "first")]
    assert [candidate.score for candidate in result.candidates] == pytest.approx([0.45, 0.3])
    assert dict(result.candidates[0].scores) == pytest.approx({"first": 0.5, "second": 0.4})


def test_only_the_undecided_go_on_down_a_cascade(catalogue: Catalogue) -> None:
    spec = spec_of(CASCADE, first=RULES, second=RULES)
    first, second = Says((0, 0.9)), Says((3, 0.8))  # row 0 is tea, row 3 is ware
    retrieval = Retrieval(spec, catalogue, {"first": first, "second": second})
    results = retrieve(retrieval, Query("a"), Query("b", filters={"category": "ware"}), Query("c"))
    assert [ids(result) for result in results] == [[("TEA000", "first")], [("TEA003", "second")], [("TEA000", "first")]]
    assert (first.asked, second.asked) == (["a", "b", "c"], ["b"])


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [({"method": "weighted"}, ["TEA000", "TEA002", "TEA001"]), ({"method": "rrf"}, ["TEA001", "TEA000", "TEA002"])],
)
def test_weighted_adds_scores_and_rrf_adds_ranks(
    catalogue: Catalogue, fusion: dict[str, Any], expected: list[str]
) -> None:
    # Row 1 comes second twice, with little to say for it.
    sources = {"first": Says((0, 0.9), (1, 0.1)), "second": Says((2, 0.8), (1, 0.1))}
    [result] = retrieve(Retrieval(spec_of(fusion, first=RULES, second=RULES), catalogue, sources), Query("tea"))
    assert [candidate.id for candidate in result.candidates] == expected


def test_weights_decide_who_is_heard(catalogue: Catalogue) -> None:
    sources = {"first": Says((0, 0.6)), "second": Says((1, 0.9))}
    heavy = {**RULES, "weight": 3.0}
    [result] = retrieve(Retrieval(spec_of({}, first=heavy, second=RULES), catalogue, sources), Query("tea"))
    assert [candidate.id for candidate in result.candidates] == ["TEA000", "TEA001"]


def test_what_is_weak_or_missing_is_an_abstention(catalogue: Catalogue) -> None:
    spec = spec_of({"abstain_below": 0.3}, first=RULES)
    for source, abstained, count in ((Says((0, 0.29)), True, 1), (Says((0, 0.3001)), False, 1), (Says(), True, 0)):
        [result] = retrieve(Retrieval(spec, catalogue, {"first": source}), Query("tea"))
        assert (result.abstained, len(result.candidates)) == (abstained, count)


def test_a_changed_item_is_found_once_with_its_new_text(catalogue: Catalogue) -> None:
    embedder = FakeEmbedder()

    async def embed(texts: Sequence[str]) -> Vectors:
        return embedder.embed(texts)

    items = made_up_items()
    vectors = embedder.embed_documents([f"{i.fields['ko']}. {i.fields['en']}" for i in items])
    source = DenseSource(ExactSearch(vectors), ("ko", "en"), embed, embedder.embed_documents)
    retrieval = Retrieval(spec_of({}, dense={"engine": "dense"}), catalogue, {"dense": source})
    retrieval.apply([Item("TEA000", {"ko": "보랏빛 사막", "en": "Purple Desert oolong"}, {"price": 5})], ["TEA001"])
    retrieval.apply([Item("TEA000", {"ko": "보랏빛 사막", "en": "Purple Desert oolong"}, {"price": 5})], ["TEA001"])
    [found] = retrieve(retrieval, Query("Purple Desert oolong", top_k=100))
    assert found.candidates[0].id == "TEA000"
    assert b"Purple Desert" in found.candidates[0].document
    names = [candidate.id for candidate in found.candidates]
    assert len(names) == len(set(names))
    assert "TEA001" not in names
    [filtered] = retrieve(retrieval, Query("Purple Desert oolong", filters={"price": {"lte": 5}}))
    assert [candidate.id for candidate in filtered.candidates] == ["TEA000"]


async def understand(queries: Sequence[Query]) -> list[list[Understood]]:
    return [[Understood(query, query.text)] for query in queries]


def test_changes_that_cannot_be_applied_leave_nothing_behind(catalogue: Catalogue) -> None:
    embedder = FakeEmbedder()
    faults: list[Exception] = [PhaseFailed("away", phase="embed")]

    def embed_now(texts: Sequence[str]) -> Vectors:
        if faults:
            raise faults.pop()
        return embedder.embed(texts)

    lexical = LexicalSource(Scoring({"en": 1.0}, {"en": 1.0}, catalogue.rows, 1.2, 0.75, 0.25, "en"), *NO_POSTINGS)
    vectors = ExactSearch(np.zeros((catalogue.rows, embedder.dimension), np.float32))

    async def embed(texts: Sequence[str]) -> Vectors:
        return embedder.embed(texts)

    dense = DenseSource(vectors, ("en",), embed, embed_now)
    spec = spec_of({"method": "rrf"}, lexical={"engine": "lexical"}, dense={"engine": "dense"})
    retrieval = Retrieval(spec, catalogue, {"lexical": lexical, "dense": dense})
    change = Item("NEW", {"ko": "보랏빛", "en": "purple desert"}, {"price": 5})
    rows = catalogue.rows
    with pytest.raises(PhaseFailed):
        retrieval.apply([change], [])
    with pytest.raises(BadRequest, match="price"):
        retrieval.apply([change, Item("BAD", {"en": "purple"}, {"price": "dear"})], ["TEA001"])
    assert (catalogue.rows, "TEA001" in catalogue) == (rows, True)
    assert len(lexical.search([Query("purple")], [None], 5)[0].rows) == 0
    retrieval.apply([change], [])
    [result] = retrieve(retrieval, Query("purple desert", top_k=3))
    assert result.candidates[0].id == "NEW"
    assert set(result.candidates[0].scores) == {"lexical", "dense"}


async def test_the_fault_of_a_source_is_a_failed_phase(catalogue: Catalogue) -> None:
    retrieval = Retrieval(spec_of({}, first=RULES), catalogue, {"first": Says(fault=ZeroDivisionError("by zero"))})
    with pytest.raises(PhaseFailed, match="retrieve: ZeroDivisionError: by zero") as caught:
        await Pipeline(understand, retrieval).answer([Query("bad")])
    assert caught.value.phase == "retrieve"


@pytest.mark.parametrize(
    ("bad", "fault", "expected"),
    [
        (Query("bad"), ZeroDivisionError("by zero"), PhaseFailed),
        (Query("fine", filters={"colour": 1}), None, BadRequest),
    ],
)
async def test_one_bad_query_fails_alone(
    catalogue: Catalogue, bad: Query, fault: Exception | None, expected: type[Exception]
) -> None:
    spec = spec_of({}, first=RULES)
    pipeline = Pipeline(understand, Retrieval(spec, catalogue, {"first": Says((0, 0.9), fault=fault)}))
    served = ServedRelease(1, LoadedRelease(spec, pipeline, close=lambda: None, concurrency=1), Limits())
    deadline = time.monotonic() + 30
    calls = [served.answer([query], deadline) for query in (Query("a"), bad, Query("c"))]
    good, failed, also_good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(failed, expected)
    for answers in (good, also_good):
        assert isinstance(answers, list)
        assert answers[0].lines[0].result.candidates[0].id == "TEA000"
    await served.close()
