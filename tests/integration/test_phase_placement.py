"""Near and far, the phases give the same answers: what travels between them loses nothing on its way. Real phases; a
hop is what pickling makes of a value. That Serve runs the units is shown by `tests/e2e/test_placement.py`."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from registry.errors import ReleaseRefused
from registry.memory_store import MemoryStore
from serving import build
from serving.components.catalogue import Catalogue
from serving.far import RANK, RETRIEVE, UNDERSTAND, split_pipeline
from serving.pipeline import Answer
from serving.schema import AppSpec, Query
from tests.contract.test_ranker_port import make_cross_encoder
from tests.endpoint import config_of, made_up_spec, publish

RANKED = {"engine": "cross_encoder", "model": "encoder", "candidates": 20, "top_k": 4, "weight": 0.5}
Call = Callable[..., Awaitable[Any]]


def hop(phase: Call) -> Call:
    """The phase, in another process as far as its values can tell."""

    async def call(*arguments: Any) -> Any:
        return pickle.loads(pickle.dumps(await phase(*pickle.loads(pickle.dumps(arguments)))))

    return call


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[AppSpec, build.Folders]:
    home, releases = tmp_path_factory.mktemp("ranked"), MemoryStore()
    make_cross_encoder(home).rename(home / "encoder")
    spec = made_up_spec("teas", rank=RANKED)
    version = publish(home, releases, spec)
    return spec, build.fetch_components(version, releases, config_of(home).component_cache)


def ids(answers: list[Answer]) -> list[list[tuple[str, float]]]:
    return [[(c.id, round(c.score, 6)) for c in answer.lines[0].result.candidates] for answer in answers]


async def test_a_ranker_gives_the_same_order_near_and_far(released: tuple[AppSpec, build.Folders]) -> None:
    spec, folders = released
    catalogue = Catalogue.load(folders["catalogue"])
    retrieval = build.build_retrieval(spec, folders, {}, catalogue)
    ranking = build.build_ranking(spec, folders, catalogue)
    understand = build.build_understand(spec, folders)
    assert ranking is not None
    near = build.build_pipeline(understand, retrieval, ranking)
    far = split_pipeline(spec, {UNDERSTAND: hop(understand), RETRIEVE: hop(retrieval), RANK: hop(ranking.rank)})
    queries = [Query("blue hill green tea"), Query("kettle", top_k=2), Query("녹차", filters={"price": {"lte": 9500}})]
    here, there = await near.answer(queries), await far.answer(queries)
    assert ids(here) == ids(there)
    assert [len(answer.lines[0].result.candidates) for answer in here] == [4, 2, 4]  # rank.top_k, or what is asked for
    assert set(here[0].timings_ms) == set(there[0].timings_ms) == {"understand", "retrieve", "rank"}
    assert "rank" in here[0].lines[0].result.candidates[0].scores


async def test_the_ranker_sees_more_than_is_asked_for_and_may_turn_it_over(
    released: tuple[AppSpec, build.Folders],
) -> None:
    spec, folders = released
    catalogue = Catalogue.load(folders["catalogue"])
    retrieval = build.build_retrieval(spec, folders, {}, catalogue)
    plain = build.build_pipeline(build.build_understand(spec, folders), retrieval)
    ranked = build.build_pipeline(
        build.build_understand(spec, folders), retrieval, build.build_ranking(spec, folders, catalogue)
    )
    query = Query("tea", top_k=3)
    first, then = (await plain.answer([query]))[0], (await ranked.answer([query]))[0]
    assert "rank" not in first.timings_ms  # an app without the phase pays nothing for it
    assert len(then.lines[0].result.candidates) == 3
    assert ids([first]) != ids([then])


def test_a_release_whose_ranker_is_missing_is_refused(released: tuple[AppSpec, build.Folders]) -> None:
    spec, folders = released
    without = {name: folder for name, folder in folders.items() if name != "rank"}
    with pytest.raises(ReleaseRefused, match="palate index teas"):
        build.build_ranking(spec, without, Catalogue.load(folders["catalogue"]))
