"""The router: what `stable` points at serves, a release that fails never does, and what serves goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from registry.errors import RegistryUnavailable, ReleaseRefused
from registry.fakes import MemoryBoard
from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from serving.config import Limits
from serving.errors import NotFound, StoreUnavailable
from serving.router import LoadedRelease, Means, Router
from serving.schema import Query
from tests.endpoint import bare_release, made_up_spec
from tests.loads import Loads


class Releases(MemoryStore):
    """A store that can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def get(self, app: str, version_or_alias: int | str) -> ReleaseVersion:
        if self.away:
            raise RegistryUnavailable("the registry sleeps")
        return super().get(app, version_or_alias)


def router_of(releases: MemoryStore, loads: Loads, apps: Sequence[str] = ("teas",)) -> Router:
    """A router whose apps no controller has taken on."""
    return Router(apps, releases, Means(MemoryBoard(), loads.load, None, Limits(), retry_s=60))


@pytest.fixture
def releases() -> Releases:
    store = Releases()
    bare_release(store, made_up_spec("teas"), "first")
    return store


async def answered_by(router: Router, text: str = "tea") -> str:
    """The version that answered."""
    served = router.served("teas")
    [answer] = await served.answer([Query(text)], asyncio.get_running_loop().time() + 30)
    [candidate] = answer.lines[0].result.candidates
    return candidate.id


async def test_the_stable_release_serves_and_the_next_takes_over(releases: Releases) -> None:
    loads = Loads()
    router = router_of(releases, loads)
    assert set(router.problems()) == {"teas"}
    await router.refresh()
    assert router.problems() == {}
    assert await answered_by(router) == "1"
    bare_release(releases, made_up_spec("teas"), "second")
    assert await answered_by(router) == "1"
    await router.refresh()
    await router.refresh()
    assert await answered_by(router) == "2"
    await router.close()
    assert loads.tried == [1, 2]
    assert loads.closed == [1, 2]


async def test_an_old_release_finishes_what_it_began(releases: Releases) -> None:
    loads = Loads()
    loads.gate.clear()
    router = router_of(releases, loads)
    await router.refresh()
    slow = asyncio.create_task(answered_by(router, "slow"))
    await asyncio.sleep(0)
    bare_release(releases, made_up_spec("teas"), "second")
    await router.refresh()
    assert await answered_by(router) == "2"
    assert loads.closed == []
    loads.gate.set()
    assert await slow == "1"
    await router.close()
    assert loads.closed == [1, 2]


@pytest.mark.parametrize("fault", [ReleaseRefused("altered"), RuntimeError("odd"), TypeError("odd"), EOFError("odd")])
async def test_a_release_that_cannot_be_loaded_is_refused_once(releases: Releases, fault: Exception) -> None:
    loads = Loads()
    router = router_of(releases, loads)
    await router.refresh()
    loads.fails[2] = fault
    bare_release(releases, made_up_spec("teas"), "second")
    for _ in range(3):
        await router.refresh()
        assert await answered_by(router) == "1"
    assert loads.tried == [1, 2]
    assert "release 2" in router.problem("teas")
    assert str(fault) in router.problem("teas")
    assert router.problems() == {}  # it still serves
    releases.set_alias("teas", "stable", 1)
    await router.refresh()
    assert router.problem("teas") == ""
    bare_release(releases, made_up_spec("teas"), "third")
    await router.refresh()
    assert await answered_by(router) == "3"
    await router.close()


async def test_a_release_that_cannot_answer_is_refused_and_closed(releases: Releases) -> None:
    loads = Loads()
    loads.faults[1] = RuntimeError("no answer")
    router = router_of(releases, loads)
    await router.refresh()
    assert "no answer" in router.problems()["teas"]
    assert loads.closed == [1]
    with pytest.raises(StoreUnavailable, match="no answer"):
        router.served("teas")
    await router.close()


@pytest.mark.parametrize("fault", [RegistryUnavailable("away"), StoreUnavailable("away"), OSError("disk full")])
async def test_what_may_pass_is_tried_again(releases: Releases, fault: Exception) -> None:
    loads = Loads()
    loads.fails[1] = fault
    router = router_of(releases, loads)
    await router.refresh()
    assert str(fault) in router.problems()["teas"]
    loads.fails.clear()
    await router.refresh()
    assert await answered_by(router) == "1"
    await router.close()


async def test_a_registry_that_is_away_or_an_alias_that_is_gone_stops_nothing(releases: Releases) -> None:
    router = router_of(releases, Loads())
    await router.refresh()
    releases.away = True
    await router.refresh()
    assert await answered_by(router) == "1"
    assert "sleeps" in router.problem("teas")
    releases.away = False
    releases.delete_alias("teas", "stable")
    await router.refresh()
    assert await answered_by(router) == "1"
    assert "palate index teas" in router.problem("teas")
    await router.close()


async def test_one_broken_app_does_not_keep_the_others_down(releases: Releases) -> None:
    bare_release(releases, made_up_spec("cups"))
    loads = Loads()

    async def load(version: ReleaseVersion) -> LoadedRelease:
        if version.release.app == "cups":
            raise AttributeError("a bug in an adapter")
        return await loads.load(version)

    means = Means(MemoryBoard(), load, None, Limits(), retry_s=60)
    router = Router(["cups", "teas", "plates"], releases, means)
    await router.refresh()
    assert set(router.problems()) == {"cups", "plates"}
    assert await answered_by(router) == "1"
    with pytest.raises(NotFound):
        router.served("nothing")
    await router.close()


async def test_the_loop_follows_stable_and_ends_with_close(releases: Releases) -> None:
    loads = Loads()
    router = router_of(releases, loads)
    await router.refresh()
    router.start(0.01, 0.01)
    async with asyncio.timeout(30):
        while router.problems():
            await asyncio.sleep(0.01)
        bare_release(releases, made_up_spec("teas"), "second")
        while await answered_by(router) != "2":
            await asyncio.sleep(0.01)
    await router.close()
    assert sorted(loads.closed) == [1, 2]
    assert threading.active_count() < 50
