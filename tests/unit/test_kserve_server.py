"""The container of an InferenceService: whose evidence its answers are, and what becomes of those that fail."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest

from registry.errors import RegistryUnavailable, ReleaseNotFound
from registry.fakes import MemoryBoard, MemoryEvidence, MemoryTables
from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from registry.traffic import ANSWERED, EMPTY, RAISED, TIMED_OUT, Traffic
from serving.arms import Asked
from serving.config import Limits
from serving.errors import BadRequest, DeadlineExceeded, PhaseFailed
from serving.evidence import EvidenceRecorder
from serving.kserve_server import Followed, PinnedArms, PinnedBoard, arm_of, find_release
from serving.router import Means, Router
from serving.schema import Query
from serving.trace import Origin, new_token
from tests.endpoint import bare_release, made_up_spec
from tests.loads import Loads
from tests.waiting import wait_for

TRIAL = Traffic("teas", 5, 1, canary=2, control=1, canary_percent=5, control_percent=5, rollout=3)
BAKE = Traffic("teas", 9, 2, canary=2, control=1, canary_percent=5, control_percent=5, rollout=3, warm=(1,))


def tokens(count: int) -> list[str]:
    """The same tokens in every run: what is counted of them is a share, and a share of others may lie far off."""
    random = Random(1)
    return [f"{random.getrandbits(128):032x}" for _ in range(count)]


def test_all_that_the_arm_with_pods_of_its_own_answers_is_its_evidence() -> None:
    assert {arm_of(TRIAL, 2, token) for token in tokens(100)} == {"canary"}
    assert {arm_of(BAKE, 1, token) for token in tokens(100)} == {"control"}


@pytest.mark.parametrize(("percent", "share"), [(1, 1 / 99), (5, 5 / 95), (25, 1 / 3), (50, 1)])
def test_the_other_arm_is_as_large_a_part_of_stables_answers(percent: int, share: float) -> None:
    """Of 10,000 requests the canary gets `percent`, and stable the rest: what is drawn of that is as many."""
    traffic = replace(TRIAL, canary_percent=percent, control_percent=percent)
    drawn = [arm_of(traffic, 1, token) for token in tokens(4000)]
    assert set(drawn) <= {"control", None}
    assert drawn.count("control") == pytest.approx(4000 * share, rel=0.25)
    assert {arm_of(replace(BAKE, canary_percent=50), 2, token) for token in tokens(50)} == {"canary"}


def test_without_traffic_on_the_arms_there_is_no_evidence() -> None:
    for traffic in (None, Traffic("teas", 1, 1), replace(TRIAL, canary_percent=0, control_percent=0)):
        assert {arm_of(traffic, version, token) for version in (1, 2, 9) for token in tokens(20)} == {None}
    assert arm_of(TRIAL, 9, tokens(1)[0]) is None, "a version that the rollout does not name"


class Stage:
    """A container of version 2 of `teas`, on trial, without HTTP."""

    def __init__(self, releases: MemoryStore) -> None:
        self.loads = Loads()
        self.evidence = MemoryEvidence()
        self.recorder = EvidenceRecorder(self.evidence, "pod", every_s=0.01)
        board = PinnedBoard(releases.get("teas", 2))
        self.router = Router(["teas"], releases, Means(board, self.loads.load, None, Limits(), 0.1))
        self.arms = PinnedArms(self.router, self.recorder, lambda: TRIAL)

    async def ask(self, within_s: float = 30.0) -> Origin:
        token, deadline = new_token(time.time()), time.monotonic() + within_s
        return (await self.arms.answer(Asked("teas", "u", token, [Query("green tea")], deadline))).origin

    def outcomes(self) -> str:
        found = self.evidence.after("teas", 3, {}, 100)
        assert {evidence.arm for evidence in found} <= {"canary"}
        return "".join(evidence.block.outcomes for evidence in found)


@pytest.fixture
def releases() -> MemoryStore:
    store = MemoryStore()
    for mark in ("one", "two"):
        bare_release(store, made_up_spec("teas"), mark)
    return store


async def test_each_answer_and_each_failure_is_evidence_and_nobody_stands_in(releases: MemoryStore) -> None:
    stage = Stage(releases)
    await stage.router.refresh()
    try:
        assert await stage.ask() == Origin("2", 3, "canary")
        stage.loads.finds_nothing.add(2)
        await stage.ask()
        stage.loads.faults[2] = PhaseFailed("retrieve: made up", phase="retrieve")
        with pytest.raises(PhaseFailed):
            await stage.ask()
        stage.loads.faults[2] = BadRequest("a filter that is not there", field="filters")
        with pytest.raises(BadRequest):  # no evidence: the caller's own fault
            await stage.ask()
        del stage.loads.faults[2]
        stage.loads.hangs.add(2)
        with pytest.raises(DeadlineExceeded):
            await stage.ask(within_s=0.05)
    finally:
        await stage.router.close()
        stage.recorder.close()
    assert stage.outcomes() == ANSWERED + EMPTY + RAISED + TIMED_OUT


def test_a_pinned_board_names_one_release_for_ever(releases: MemoryStore) -> None:
    board = PinnedBoard(releases.get("teas", 2))
    assert board.traffic() == {"teas": Traffic("teas", 1, 2)}
    assert board.release("teas", 2).version == 2
    assert board.routers("teas", 0) == []


def test_a_version_with_traffic_is_found_without_mlflow(releases: MemoryStore) -> None:
    class Away(MemoryStore):
        def get(self, app: str, version_or_alias: int | str) -> ReleaseVersion:
            raise RegistryUnavailable("MLflow is away")

    tables = MemoryTables()
    tables.releases["teas", 2] = releases.get("teas", 2)
    board = MemoryBoard(tables)
    assert find_release("teas", "2", board, Away()).version == 2
    with pytest.raises(RegistryUnavailable):
        find_release("teas", "1", board, Away())
    assert find_release("teas", "1", board, releases).version == 1
    assert find_release("teas", "", board, releases).version == 2, "stable"
    with pytest.raises(ReleaseNotFound):
        find_release("teas", "7", board, releases)


def test_the_traffic_last_read_holds_while_the_database_is_away() -> None:
    tables = MemoryTables()
    followed = Followed(MemoryBoard(tables), "teas", 0.01)
    try:
        tables.traffic["teas"] = TRIAL
        wait_for(lambda: followed.traffic == TRIAL)
        tables.away = True
        time.sleep(0.05)
        assert followed.traffic == TRIAL
        tables.away = False
        tables.traffic["teas"] = BAKE
        wait_for(lambda: followed.traffic == BAKE)
    finally:
        followed.close()
