"""The router under a controller: it does what its traffic says with what it has, and says what it does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from registry.traffic import Traffic, TrialArm
from serving.config import Limits
from serving.errors import NotFound, ReplicaLost, StoreUnavailable
from serving.router import LoadedRelease, Means, Router
from serving.schema import Query
from tests.desk import Desk
from tests.endpoint import bare_release, made_up_spec
from tests.loads import Loads

POLL_S = 0.01


class Bench:
    """A router of the apps `teas` and `cups`, each with three releases, polling as fast as it can."""

    def __init__(self) -> None:
        self.releases = MemoryStore()
        for app in ("teas", "cups"):
            for mark in ("first", "second", "third"):
                bare_release(self.releases, made_up_spec(app), mark)
            self.releases.set_alias(app, "stable", 1)
        self.desk = Desk(self.releases)
        self.loads, others = Loads(), Loads()
        """What `teas` loads; `others`: what `cups` does."""

        def load(version: ReleaseVersion) -> Awaitable[LoadedRelease]:
            return (self.loads if version.release.app == "teas" else others).load(version)

        def connect(version: ReleaseVersion, traffic: Traffic, arm: TrialArm) -> Awaitable[LoadedRelease]:
            return (self.loads if traffic.app == "teas" else others).connect_arm(version, traffic, arm)

        means = Means(self.desk.board, load, connect, Limits(), retry_s=0.05)
        self.router = Router(["teas", "cups"], self.releases, means)

    def shares(self, app: str = "teas") -> Counter[str]:
        """Which of 1,000 users go to which arm."""
        return Counter(self.router.route(app, f"user-{n}", f"{n}").arm for n in range(1000))

    def stable(self, app: str = "teas") -> str:
        return self.router.served(app).version

    async def steered(self, app: str = "teas") -> None:
        """Until the newest traffic is followed in full, and the controller knows."""
        await until(lambda: self.desk.followed(app))


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    running = Bench()
    await running.router.refresh()
    running.router.start(POLL_S, POLL_S)
    try:
        yield running
    finally:
        running.loads.gate.set()
        await running.router.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(POLL_S)


async def a_few_polls() -> None:
    await asyncio.sleep(20 * POLL_S)


async def test_traffic_overrules_the_alias_and_the_alias_counts_only_without_it() -> None:
    async with bench() as b:
        b.desk.steer("teas", 2)
        await b.steered()
        b.releases.set_alias("teas", "stable", 3)
        b.releases.set_alias("cups", "stable", 3)
        await until(lambda: b.stable("cups") == "3")
        await a_few_polls()
        assert b.stable("teas") == "2"
        assert b.desk.reports("cups") == []  # nobody asked what that app does


async def test_arms_get_users_once_they_are_connected_and_have_answered() -> None:
    async with bench() as b:
        b.loads.fails["canary"] = StoreUnavailable("does not run yet")
        b.desk.trial("teas", 10.0)
        await until(lambda: any("does not run yet" in report.problem for report in b.desk.reports("teas")))
        assert set(b.shares()) == {"stable", "control"}
        assert not b.desk.followed("teas")
        b.loads.fails.clear()
        await b.steered()
        assert b.loads.answered("canary", "blue hill green tea") == 1  # the example query of the app
        shares = b.shares()
        assert 60 < shares["canary"] < 140
        assert 60 < shares["control"] < 140
        assert b.router.route("teas", None, "token").arm in {"stable", "canary", "control"}
        [report] = b.desk.reports("teas")
        assert (report.router, report.stable, report.problem) == (b.router.id, 1, "")


async def test_a_canary_that_cannot_answer_gets_nobody() -> None:
    async with bench() as b:
        b.loads.faults["canary"] = RuntimeError("broken")
        b.desk.trial("teas", 50.0)
        await until(lambda: any("canary arm (release 2)" in report.problem for report in b.desk.reports("teas")))
        assert set(b.shares()) == {"stable", "control"}
        assert "canary" in b.loads.closed
        assert b.router.problem("teas") == ""  # stable is as it should be


async def test_weights_rise_and_fall_without_loading_and_move_nobody_back() -> None:
    async with bench() as b:
        b.desk.trial("teas", 5.0)
        await b.steered()
        seen: set[str] = set()
        for percent in (5.0, 25.0, 50.0):
            b.desk.trial("teas", percent)
            await b.steered()
            users = [f"user-{n}" for n in range(1000)]
            now = {user for user in users if b.router.route("teas", user, "").arm == "canary"}
            assert seen < now
            seen = now
        b.desk.steer("teas", 1)
        await b.steered()
        assert set(b.shares()) == {"stable"}
        assert b.loads.tried.count("canary") == 1
        await until(lambda: {"canary", "control"} <= set(b.loads.closed))


async def test_promotion_goes_on_with_old_stable_and_arms_until_the_new_is_loaded() -> None:
    async with bench() as b:
        b.desk.trial("teas", 50.0)
        await b.steered()
        b.loads.gate.clear()
        b.loads.slow_to_load.add(2)
        before = b.shares()
        b.desk.trial("teas", 5.0, stable=2, warm=(1,))
        await until(lambda: 2 in b.loads.tried)
        await a_few_polls()
        assert (b.stable(), b.shares()) == ("1", before)
        b.loads.gate.set()
        await b.steered()
        assert b.stable() == "2"
        assert b.shares()["stable"] > 850
        b.desk.steer("teas", 1, warm=(2,))  # and back, at once: both are loaded
        await b.steered()
        assert b.stable() == "1"
        assert b.loads.tried.count(1) == b.loads.tried.count(2) == 1
        b.desk.steer("teas", 1)
        await until(lambda: 2 in b.loads.closed)
        assert 1 not in b.loads.closed


async def test_arms_that_are_not_wanted_any_more_go_at_once_though_the_new_stable_is_not_there() -> None:
    async with bench() as b:
        b.desk.trial("teas", 50.0)
        await b.steered()
        b.loads.gate.clear()
        b.loads.slow_to_load.add(3)
        b.desk.steer("teas", 3)  # moved by a person
        await until(lambda: set(b.shares()) == {"stable"})
        assert b.stable() == "1"
        b.loads.gate.set()
        await b.steered()
        assert b.stable() == "3"


async def test_a_slow_load_holds_up_no_other_app_and_not_its_own_way_back() -> None:
    async with bench() as b:
        b.desk.trial("cups", 50.0)
        b.desk.steer("teas", 1)
        await b.steered("cups")
        b.loads.gate.clear()
        b.loads.slow_to_load.add(3)
        b.desk.steer("teas", 3)
        await until(lambda: 3 in b.loads.tried)
        b.desk.steer("cups", 1)
        await b.steered("cups")
        assert set(b.shares("cups")) == {"stable"}
        b.desk.steer("teas", 1)
        await b.steered()
        b.loads.gate.set()
        await until(lambda: 3 in b.loads.closed)  # it came too late
        assert b.stable() == "1"


async def test_a_stable_that_cannot_be_loaded_leaves_the_old_one_and_says_so() -> None:
    async with bench() as b:
        b.loads.fails[2] = ValueError("fingerprints do not match")
        b.desk.steer("teas", 2)
        await until(lambda: any("fingerprints" in report.problem for report in b.desk.reports("teas")))
        [report] = b.desk.reports("teas")
        assert (report.generation, report.stable) == (0, 1)
        assert "release 2" in b.router.problem("teas")
        await a_few_polls()
        assert b.loads.tried.count(2) == 1


async def test_while_the_board_is_away_the_last_traffic_stands() -> None:
    async with bench() as b:
        b.desk.trial("teas", 50.0)
        await b.steered()
        before = b.shares()
        b.desk.tables.away = True
        await a_few_polls()
        assert b.shares() == before
        b.desk.tables.away = False
        b.desk.steer("teas", 1)
        await b.steered()
        assert set(b.shares()) == {"stable"}


async def test_reports_repeat_so_that_the_controller_knows_who_lives() -> None:
    async with bench() as b:
        b.desk.steer("teas", 1)
        await b.steered()
        first = b.desk.reports("teas")[0].at_s
        await until(lambda: b.desk.reports("teas")[0].at_s > first)


async def test_a_lost_arm_gets_nobody_until_it_answers_again() -> None:
    async with bench() as b:
        b.desk.trial("teas", 50.0)
        await b.steered()
        b.loads.faults["canary"] = ReplicaLost("killed")
        user = next(f"user-{n}" for n in range(100) if b.router.route("teas", f"user-{n}", "").arm == "canary")
        route = b.router.route("teas", user, "")
        assert not route.lost
        b.router.lost("teas", route.served)
        assert b.router.route("teas", user, "").lost
        await until(lambda: any("lost its replica" in report.problem for report in b.desk.reports("teas")))
        warmed = b.loads.answered("canary", "blue hill green tea")
        await until(lambda: b.loads.answered("canary", "blue hill green tea") > warmed)
        assert b.router.route("teas", user, "").lost
        b.loads.faults.clear()
        await until(lambda: not b.router.route("teas", user, "").lost)
        await until(lambda: b.desk.reports("teas")[0].problem == "")


async def test_pins_name_what_is_there() -> None:
    async with bench() as b:
        b.desk.trial("teas", 0.0, warm=(3,))
        await b.steered()
        named = {name: b.router.pinned("teas", name, "h") for name in ("stable", "canary", "control", "1", "2", "3")}
        assert [served.version for served in named.values()] == ["1", "2", "1", "1", "2", "3"]
        assert named["1"] is named["stable"] is not named["control"]
        for name in ("4", "first", ""):
            with pytest.raises(NotFound, match=r"canary \(2\), control \(1\), stable \(1\)") as refused:
                b.router.pinned("teas", name, "h")
            assert refused.value.field == "h"


async def test_what_an_arm_was_asked_it_finishes_after_it_was_taken_away() -> None:
    async with bench() as b:
        b.desk.trial("teas", 50.0)
        await b.steered()
        b.loads.gate.clear()
        canary = b.router.pinned("teas", "canary", "")
        slow = asyncio.create_task(canary.answer([Query("slow")], asyncio.get_running_loop().time() + 30))
        await until(lambda: b.loads.answered("canary", "slow") == 1)
        b.desk.steer("teas", 1)
        await b.steered()
        await until(lambda: "control" in b.loads.closed)
        assert "canary" not in b.loads.closed
        b.loads.gate.set()
        [answer] = await slow
        assert answer.lines[0].result.candidates[0].id == "2"
        await until(lambda: "canary" in b.loads.closed)


async def test_a_router_that_starts_in_a_rollout_finds_its_way() -> None:
    running = Bench()
    running.desk.trial("teas", 25.0, stable=2, warm=(1,))
    await running.router.refresh()
    assert running.stable() == "2"
    running.router.start(POLL_S, POLL_S)
    await running.steered()
    assert set(running.shares()) == {"stable", "canary", "control"}
    await running.router.close()
    assert sorted(map(str, running.loads.closed)) == ["1", "2", "canary", "control"]
