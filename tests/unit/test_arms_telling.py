"""Generated answers of the arms of a rollout: a canary that fails before its first text is replayed on stable, and what
it generated is evidence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from registry.traffic import Block, Traffic, TrialArm
from serving.arms import Arms, Asked, Told
from serving.config import Limits
from serving.errors import BadRequest, DeadlineExceeded, Overloaded, PhaseFailed, ReplicaLost
from serving.evidence import EvidenceRecorder
from serving.fakes import FakeLanguageModel, Scripted
from serving.generate.generator import Wish
from serving.router import LoadedRelease, Means, Router
from serving.schema import AppSpec, Query
from serving.split import choose
from serving.trace import Origin, new_token
from tests.desk import Desk
from tests.endpoint import bare_release
from tests.told import GOOD, MADE_UP, told_release, told_spec
from tests.unit.test_router_traffic import until

OFF = "달빛분식이 좋아요."


@dataclass
class Running:
    arms: Arms
    desk: Desk
    models: dict[str, FakeLanguageModel]
    evidence: EvidenceRecorder
    router: Router

    def asked(self, arm: str, wish: Wish | None = None, left_s: float = 30.0) -> Asked:
        traffic = self.desk.board.traffic()["shops"]
        user = next(f"user-{n}" for n in range(1000) if choose(traffic, f"user-{n}") == arm)
        deadline = asyncio.get_running_loop().time() + left_s
        return Asked("shops", user, new_token(1.0), [Query("치킨집")], deadline, wish or Wish())

    def blocks(self, arm: str) -> list[Block]:
        self.evidence.close()
        return [e.block for e in self.desk.evidence.after("shops", 1, {}, 100) if e.arm == arm]

    def outcomes(self, arm: str) -> str:
        return "".join(block.outcomes for block in self.blocks(arm))

    def script(self, arm: str, *answers: Scripted, **how: float) -> FakeLanguageModel:
        """What this arm's model says from now on."""
        told = FakeLanguageModel(answers, **how)  # type: ignore[arg-type]
        self.models[arm].__dict__.update(told.__dict__)
        return self.models[arm]


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    releases = MemoryStore()
    for mark in ("first", "second"):
        bare_release(releases, told_spec(), mark)
    desk = Desk(releases)
    desk.trial("shops", 40.0)
    models = {name: FakeLanguageModel([GOOD]) for name in ("stable", "canary", "control")}

    def loaded(version: ReleaseVersion, name: str) -> LoadedRelease:
        return told_release(AppSpec.model_validate(version.release.spec), models[name])

    async def load(version: ReleaseVersion) -> LoadedRelease:
        return loaded(version, "stable")

    async def connect(version: ReleaseVersion, traffic: Traffic, arm: TrialArm) -> LoadedRelease:
        return loaded(version, arm)

    router = Router(["shops"], releases, Means(desk.board, load, connect, Limits(), retry_s=60))
    await router.refresh()
    router.start(0.01, 60)
    await until(lambda: desk.followed("shops"))
    evidence = EvidenceRecorder(desk.evidence, router.id, every_s=60)
    try:
        yield Running(Arms(router, evidence), desk, models, evidence, router)
    finally:
        evidence.close()
        await router.close()


async def read(told: Told) -> str:
    try:
        return "".join([event async for event in told.events if isinstance(event, str)])
    finally:
        await told.events.aclose()


async def test_each_arm_answers_with_its_own_and_says_how_well() -> None:
    async with running() as r:
        r.script("canary", MADE_UP, OFF)
        told = {arm: await r.arms.tell(r.asked(arm)) for arm in ("stable", "canary", "control")}
        assert {arm: await read(one) for arm, one in told.items()} == {"stable": GOOD, "canary": OFF, "control": GOOD}
        assert told["canary"].given.origin == Origin("2", 1, "canary")
        (canary,), (control,) = r.blocks("canary"), r.blocks("control")
        assert (canary.outcomes, control.outcomes) == ("a", "a")
        assert (canary.measures["failed_grounded"], control.measures["failed_grounded"]) == ((1.0,), (0.0,))
        assert (canary.measures["repaired"], canary.measures["fallback"]) == ((1.0,), (0.0,))
        assert control.measures["ms_per_token"][0] is not None


@pytest.mark.parametrize(
    ("fault", "letter"),
    [
        (ReplicaLost("the engine ended"), "c"),
        (Overloaded("full", retry_after_s=1.0), "o"),
        (PhaseFailed("no such adapter", phase="generate"), "e"),
        (BadRequest("the prompt has 9000 tokens"), "e"),
    ],
)
async def test_a_canary_that_fails_before_its_first_text_is_replayed(fault: Exception, letter: str) -> None:
    async with running() as r:
        r.script("canary", fault)  # type: ignore[arg-type]
        told = await r.arms.tell(r.asked("canary"))
        assert (told.given.origin, told.given.replayed) == (Origin("1"), True)
        assert await read(told) == GOOD
        assert r.outcomes("canary") == letter
        # The engine ended and not the arm's replica: it goes on getting requests
        assert not r.router.route("shops", r.asked("canary").who, "0" * 32).lost


async def test_a_slow_canary_gets_its_share_of_the_time() -> None:
    async with running() as r:
        slow = r.script("canary", GOOD, piece_s=5.0)
        told = await r.arms.tell(r.asked("canary", left_s=2.0))
        assert await read(told) == GOOD
        assert (told.given.replayed, slow.running) == (True, 0)
        assert r.outcomes("canary") == "t"


async def test_a_canary_that_fails_within_its_answer_counts_as_failed() -> None:
    async with running() as r:
        r.script("canary", f"{GOOD} {GOOD}", dies_after=7)
        told = await r.arms.tell(r.asked("canary", Wish(stream=True)))
        said = await read(told)
        assert said.startswith(GOOD)
        assert said.endswith("행복치킨은 9000원이에요.")  # the template's
        assert r.outcomes("canary") == "e"


async def test_a_request_that_stable_refuses_too_is_no_evidence() -> None:
    async with running() as r:
        with pytest.raises(BadRequest, match="premium"):
            await r.arms.tell(r.asked("canary", Wish(form="premium")))
        assert r.outcomes("canary") == ""


async def test_a_caller_that_leaves() -> None:
    async with running() as r:
        model = r.script("canary", GOOD, piece_s=0.05)
        before = asyncio.create_task(r.arms.tell(r.asked("canary")))
        await until(lambda: model.running == 1)
        before.cancel()
        with pytest.raises(asyncio.CancelledError):
            await before
        assert model.running == 0
        within = await r.arms.tell(r.asked("canary", Wish(stream=True)))
        await within.events.aclose()
        assert model.running == 0
        assert r.outcomes("canary") == "ta"  # it had text when its reader left


async def test_a_deadline_without_a_template_is_raised() -> None:
    async with running() as r:
        r.script("stable", GOOD, piece_s=5.0)
        schema = {"type": "object"}  # of the request's own: no template fits
        with pytest.raises(DeadlineExceeded):
            await r.arms.tell(r.asked("stable", Wish(schema=schema), left_s=0.2))
