"""What every `RewardSource` does: over feedback in SQLite, in PostgreSQL, and its stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.database import migrate, open_database
from registry.errors import BadInput
from registry.fakes import MemoryRewards
from registry.ports import RewardSource
from registry.traffic import Reward
from serving.errors import BadRequest
from serving.rewards import SqlRewards, read
from serving.schema import FeedbackEvent
from serving.store import SqlFeedbackStore
from serving.trace import Origin, new_token, stamp

SECRET = b"made-up-secret-of-32-bytes-length"[:32]
NOW = 1_800_000_000.0
WEIGHTS = {"order": 1.0, "reject": -0.5, "rate": 0.2}


@dataclass
class Harness:
    source: RewardSource
    store: Callable[[FeedbackEvent], None]
    count: int = 0

    def feed(
        self, arm: str, answered_s: float, event: str = "order", *, app: str = "wines", value: float | None = None
    ) -> str:
        """Feedback that came 3 s after the answer; its trace id."""
        self.count += 1
        origin = Origin("7", 4, arm) if arm else Origin("7")
        trace_id = stamp(SECRET, app, new_token(answered_s), origin)
        self.store(FeedbackEvent(f"e{self.count}", trace_id, app, "7", event, answered_s + 3, value=value))
        return trace_id


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    if request.param == "memory":
        memory = MemoryRewards()
        yield Harness(memory, lambda event: memory.events.append((event.app, as_reward(memory, event))))
        return
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database = open_database(url)
    store = SqlFeedbackStore(database)
    yield Harness(SqlRewards(database, lambda app: WEIGHTS), lambda event: assert_new(store.record(event)))
    database.close()


def assert_new(new: bool) -> None:
    assert new


def as_reward(memory: MemoryRewards, event: FeedbackEvent) -> Reward:
    answer = read(event.trace_id)
    seq = 1 + sum(name == event.app for name, _ in memory.events)
    answered_s = int(event.trace_id[:12], 16) / 1000
    value = WEIGHTS.get(event.event, 0.0) * (1.0 if event.value is None else event.value)
    if answer is None:
        return Reward(seq, 0, "canary", "", answered_s, value, event.at_s)
    return Reward(seq, answer.rollout, answer.arm, answer.token, answered_s, value, event.at_s)


def test_feedback_on_an_arm_is_a_reward_of_it(harness: Harness) -> None:
    trace_id = harness.feed("canary", NOW)
    assert harness.source.rewards("wines", 0, 10) == (
        [Reward(1, 4, "canary", trace_id[24:32], NOW, 1.0, NOW + 3)],
        1,
    )


def test_plain_answers_are_passed_over_and_the_reader_gets_beyond_them(harness: Harness) -> None:
    for arm in ("", "", "control", ""):
        harness.feed(arm, NOW)
    rewards, seq = harness.source.rewards("wines", 0, 10)
    assert [(r.seq, r.arm) for r in rewards] == [(3, "control")]
    assert seq == 4
    assert harness.source.rewards("wines", seq, 10) == ([], 4)
    harness.feed("canary", NOW)
    assert [r.seq for r in harness.source.rewards("wines", seq, 10)[0]] == [5]


def test_a_page_ends_with_its_last_reward(harness: Harness) -> None:
    for _ in range(5):
        harness.feed("canary", NOW)
        harness.feed("", NOW)
    seqs, seq = [], 0
    for _ in range(4):
        page, seq = harness.source.rewards("wines", seq, 2)
        seqs += [r.seq for r in page]
    assert seqs == [1, 3, 5, 7, 9]
    assert seq == 10


def test_apps_are_apart(harness: Harness) -> None:
    harness.feed("canary", NOW, app="cheese")
    assert harness.source.rewards("wines", 0, 10) == ([], 0)
    assert harness.source.start("wines", NOW) == 0


def test_events_have_the_worth_the_app_gives_them(harness: Harness) -> None:
    harness.feed("canary", NOW, "reject")
    harness.feed("canary", NOW, "rate", value=4.0)
    harness.feed("canary", NOW, "unknown")
    assert [r.value for r in harness.source.rewards("wines", 0, 10)[0]] == [-0.5, 0.8, 0.0]


def test_reading_starts_before_the_first_answer_asked_for(harness: Harness) -> None:
    for hour in range(6):
        harness.feed("canary", NOW + 3600 * hour)
    harness.feed("canary", NOW)  # late feedback on an old answer
    start = harness.source.start("wines", NOW + 3 * 3600)
    assert start == 3
    assert [r.seq for r in harness.source.rewards("wines", start, 10)[0]] == [4, 5, 6, 7]
    last = harness.source.start("wines", NOW + 99 * 3600)
    assert last == 7
    harness.feed("canary", NOW + 100 * 3600)
    assert len(harness.source.rewards("wines", last, 10)[0]) == 1


def test_a_limit_is_a_number_above_zero(harness: Harness) -> None:
    with pytest.raises((BadInput, BadRequest), match="limit"):
        harness.source.rewards("wines", 0, 0)


@pytest.mark.parametrize(
    "trace_id",
    ["", "a.b", "0" * 32 + "-7-abc", "0" * 32 + "-7.4x-abc", "0" * 32 + "-7.c-abc", "0" * 31 + "-7.4c-abc"],
)
def test_other_ids_are_of_no_arm(trace_id: str) -> None:
    assert read(trace_id) is None
