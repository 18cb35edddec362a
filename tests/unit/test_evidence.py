"""Evidence is stored in blocks behind the answers, in order, once, and survives a database that is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from registry.errors import BadInput, RegistryUnavailable
from registry.fakes import MemoryEvidence
from registry.journal.codec import decode_block, encode_block
from registry.traffic import Block, Evidence, EvidenceArm
from serving.evidence import Entry, EvidenceRecorder
from tests.waiting import wait_for


class Store(MemoryEvidence):
    """Away until `back` is set; it may also store what it is given and fail all the same, or refuse a token."""

    def __init__(self) -> None:
        super().__init__()
        self.back = threading.Event()
        self.back.set()
        self.fails_after_storing = False
        self.refuses = ""
        self.tries = 0

    def add(self, evidence: Sequence[Evidence]) -> None:
        self.tries += 1
        if self.refuses and any(self.refuses in e.block.tokens for e in evidence):
            raise ValueError("cannot be stored")
        if self.back.is_set() or self.fails_after_storing:
            super().add(evidence)
        if not self.back.is_set():
            raise RegistryUnavailable("away")

    def all(self, app: str = "teas", rollout: int = 1) -> list[Evidence]:
        return self.after(app, rollout, {}, 10_000)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.back.set()


def entry(number: int, arm: EvidenceArm = "canary", app: str = "teas", rollout: int = 1, agreed: str = "") -> Entry:
    return Entry(app, rollout, arm, float(number), "a", f"{number:08x}", agreed)


def test_a_block_holds_an_arms_requests_in_order(store: Store) -> None:
    recorder = EvidenceRecorder(store, "router-1", every_s=60, clock=lambda: 1_700_000_000.5)
    recorder.record(Entry("teas", 1, "canary", 1.5, "a", "00000001"))
    recorder.record(Entry("teas", 1, "control", 2.5, "z", "00000002"))
    recorder.record(Entry("teas", 1, "canary", 3.5, "t", "00000003"))
    recorder.record(Entry("teas", 1, "shadow", 4.5, "n", "00000004", "1"))
    recorder.record(Entry("teas", 2, "canary", 5.5, "c", "00000005"))
    recorder.record(Entry("cups", 1, "canary", 6.5, "o", "00000006"))
    assert recorder.waiting == 6
    recorder.close()
    assert recorder.waiting == 0
    canary, control, shadow = store.all()
    assert (canary.arm, canary.router, canary.block.at_s) == ("canary", "router-1", 1_700_000_000.5)
    assert canary.block.latencies_ms == (1.5, 3.5)
    assert (canary.block.outcomes, canary.block.tokens) == ("at", "0000000100000003")
    assert (control.arm, control.block.outcomes, control.block.agreed) == ("control", "z", "")
    assert (shadow.arm, shadow.block.outcomes, shadow.block.agreed) == ("shadow", "n", "1")
    assert [e.block.outcomes for e in (*store.all(rollout=2), *store.all("cups"))] == ["c", "o"]


def test_numbers_rise_so_that_a_reader_misses_nothing(store: Store) -> None:
    recorder = EvidenceRecorder(store, "router-1", every_s=0.01)
    for number in range(3):
        recorder.record(entry(number))
        wait_for(lambda n=number: len(store.all()) == n + 1)  # type: ignore[misc]
    recorder.close()
    sequence = [e.seq for e in store.all()]
    assert sequence == sorted(set(sequence))
    assert sequence[0] >= 1


def test_nothing_recorded_asks_nothing_of_the_store(store: Store) -> None:
    recorder = EvidenceRecorder(store, "router-1", every_s=0.001)
    recorder.record(entry(1))
    wait_for(lambda: bool(store.all()))
    tries = store.tries
    recorder.close()
    assert store.tries == tries == 1


@pytest.mark.parametrize("commits", [False, True])
def test_what_came_while_the_store_was_away_is_stored_once(store: Store, commits: bool) -> None:
    """With `commits` the answer of the store is lost, and not the write."""
    store.back.clear()
    store.fails_after_storing = commits
    recorder = EvidenceRecorder(store, "router-1", every_s=0.01)
    for number in range(5):
        recorder.record(entry(number))
        tries = store.tries
        wait_for(lambda t=tries: store.tries > t)  # type: ignore[misc]
    wait_for(lambda: recorder.waiting == 5)
    store.back.set()
    wait_for(lambda: recorder.waiting == 0)
    assert "".join(e.block.tokens for e in store.all()) == "".join(f"{n:08x}" for n in range(5))
    assert recorder.dropped == 0
    recorder.close()


def test_the_oldest_go_when_too_many_wait(store: Store) -> None:
    store.back.clear()
    recorder = EvidenceRecorder(store, "router-1", every_s=0.01, capacity=10)
    for number in range(30):
        recorder.record(entry(number))
        if number % 5 == 4:  # a block of about five
            tries = store.tries
            wait_for(lambda t=tries: store.tries > t)  # type: ignore[misc]
    wait_for(lambda: recorder.waiting <= 10 and recorder.waiting + recorder.dropped == 30)
    store.back.set()
    wait_for(lambda: recorder.waiting == 0)
    kept = "".join(e.block.tokens for e in store.all())
    assert kept == "".join(f"{n:08x}" for n in range(recorder.dropped, 30))
    recorder.close()


def test_a_block_that_cannot_be_stored_costs_only_itself(store: Store) -> None:
    store.refuses = "00000001"
    recorder = EvidenceRecorder(store, "router-1", every_s=60)
    recorder.record(entry(0))
    recorder.record(entry(1, "control"))
    recorder.record(entry(2, app="cups"))
    recorder.close()
    assert [e.block.tokens for e in (*store.all(), *store.all("cups"))] == ["00000000", "00000002"]
    assert recorder.dropped == 1


def test_closing_while_the_store_is_away_ends_and_says_what_was_lost(store: Store) -> None:
    store.back.clear()
    recorder = EvidenceRecorder(store, "router-1", every_s=60)
    recorder.record(entry(1))
    recorder.close()
    assert recorder.dropped == 1
    assert store.all() == []


def test_measures_stand_beside_the_requests_that_have_them(store: Store) -> None:
    recorder = EvidenceRecorder(store, "router-1", every_s=60)
    recorder.record(entry(1)._replace(measures={"failed_grounded": 1.0}))
    recorder.record(entry(2))
    recorder.record(entry(3)._replace(measures={"failed_grounded": 0.0, "ms_per_token": 12.5}))
    recorder.record(entry(4, "control"))
    recorder.close()
    canary, control = store.all()
    assert canary.block.measures == {"failed_grounded": (1.0, None, 0.0), "ms_per_token": (None, None, 12.5)}
    assert control.block.measures == {}


def test_measures_survive_the_store_and_wrong_ones_are_refused() -> None:
    block = Block(5.0, (1.0, 2.0), "aa", measures={"ms_per_token": (None, 12.34567)})
    assert decode_block(5.0, encode_block(block)).measures == {"ms_per_token": (None, 12.3457)}
    assert decode_block(5.0, '{"l": [1.0], "o": "a"}').measures == {}  # of an older version
    for wrong in ((1.0,), (1.0, float("nan")), (-1.0, 0.0)):
        with pytest.raises(BadInput, match="ms_per_token"):
            encode_block(Block(5.0, (1.0, 2.0), "aa", measures={"ms_per_token": wrong}))
