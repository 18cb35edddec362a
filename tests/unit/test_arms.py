"""The corners of protection that HTTP does not reach: callers that leave, deadlines that passed, an end in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from registry.memory_store import MemoryStore
from serving.arms import Arms, Asked
from serving.config import Limits
from serving.errors import DeadlineExceeded
from serving.evidence import EvidenceRecorder
from serving.router import Means, Router
from serving.schema import Query
from serving.split import choose
from serving.trace import Origin, new_token
from tests.desk import Desk
from tests.endpoint import bare_release, made_up_spec
from tests.loads import Loads
from tests.unit.test_router_traffic import until


@dataclass
class Running:
    arms: Arms
    desk: Desk
    loads: Loads
    evidence: EvidenceRecorder

    def asked(self, arm: str, text: str = "tea", left_s: float = 30.0) -> Asked:
        """By a user of this arm."""
        traffic = self.desk.board.traffic()["teas"]
        user = next(f"user-{n}" for n in range(1000) if choose(traffic, f"user-{n}") == arm)
        deadline = asyncio.get_running_loop().time() + left_s
        return Asked("teas", user, new_token(1.0), [Query(text)], deadline)

    def outcomes(self, arm: str) -> str:
        self.evidence.close()
        return self.desk.outcomes("teas", arm)


@asynccontextmanager
async def running(percent: float = 40.0, shadow_percent: float = 0.0) -> AsyncIterator[Running]:
    releases = MemoryStore()
    for mark in ("first", "second"):
        bare_release(releases, made_up_spec("teas"), mark)
    desk, loads = Desk(releases), Loads()
    desk.trial("teas", percent, shadow_percent=shadow_percent)
    router = Router(["teas"], releases, Means(desk.board, loads.load, loads.connect_arm, Limits(), retry_s=60))
    await router.refresh()
    router.start(0.01, 60)
    await until(lambda: desk.followed("teas"))
    evidence = EvidenceRecorder(desk.evidence, router.id, every_s=60)
    arms = Arms(router, evidence)
    try:
        yield Running(arms, desk, loads, evidence)
    finally:
        loads.gate.set()
        await arms.close()
        evidence.close()
        await router.close()


async def test_a_caller_that_leaves_a_hanging_arm_is_counted() -> None:
    async with running() as r:
        r.loads.hangs.add("canary")
        waiting = asyncio.create_task(r.arms.answer(r.asked("canary", "gone")))
        await until(lambda: r.loads.answered("canary", "gone") == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert r.outcomes("canary") == "t"


async def test_a_deadline_that_passed_before_is_nobodys_fault() -> None:
    async with running() as r:
        with pytest.raises(DeadlineExceeded):
            await r.arms.answer(r.asked("canary", left_s=-1.0))
        assert r.outcomes("canary") == ""


async def test_what_is_said_of_an_answer() -> None:
    async with running() as r:
        stable, canary, control = [await r.arms.answer(r.asked(arm)) for arm in ("stable", "canary", "control")]
        assert (stable.origin, stable.replayed) == (Origin("1"), False)
        assert (canary.origin, canary.replayed) == (Origin("2", 1, "canary"), False)
        assert (control.origin, control.replayed) == (Origin("1", 1, "control"), False)
        r.loads.faults["canary"] = RuntimeError("a bug")
        again = await r.arms.answer(r.asked("canary"))
        assert (again.origin, again.replayed) == (Origin("1"), True)
        assert again.answers[0].lines[0].result.candidates[0].id == "1"


async def test_closing_gives_up_what_is_mirrored() -> None:
    async with running(0.0, shadow_percent=100.0) as r:
        r.loads.hangs.add("canary")
        await r.arms.answer(r.asked("stable", "mirrored"))
        await until(lambda: r.loads.answered("canary", "mirrored") == 1)
        async with asyncio.timeout(5):
            await r.arms.close()
        assert r.outcomes("shadow") == ""
