"""Trace ids prove themselves; traces are written behind the answers and never in their way."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable

import pytest

from serving.errors import BadRequest, NotFound, StoreUnavailable
from serving.fakes import MemoryFeedbackStore
from serving.schema import Trace
from serving.trace import Origin, TraceWriter, mint, new_token, stamp, verify

SECRET = b"s" * 32
NOW = 1_700_000_000.123


@pytest.mark.parametrize("release", ["1", "12", "2-rc-1"])
def test_an_id_names_its_release(release: str) -> None:
    assert verify(SECRET, "wine-orders", mint(SECRET, "wine-orders", release, NOW)) == Origin(release, 0, "")


@pytest.mark.parametrize(
    ("origin", "label"), [(Origin("7", 3, "canary"), "7.3c"), (Origin("6", 12, "control"), "6.12k")]
)
def test_an_id_names_the_arm_that_answered(origin: Origin, label: str) -> None:
    token = new_token(NOW)
    made = stamp(SECRET, "a", token, origin)
    assert made.split("-")[:2] == [token, label]
    assert verify(SECRET, "a", made) == origin
    plain = stamp(SECRET, "a", token, Origin(origin.release))
    for forged in (
        made.replace(label, origin.release),  # an arm's answer passed off as a plain one, and the other way round
        plain.replace(f"-{origin.release}-", f"-{label}-"),
        made.replace(label, label[:-1] + ("k" if label.endswith("c") else "c")),
    ):
        with pytest.raises(NotFound):
            verify(SECRET, "a", forged)


def test_ids_made_before_there_were_rollouts_stay_good() -> None:
    """Made by the version before, with this secret."""
    made = "018bcfe5687b7000800000000000002a-12-67968c122bbb52c1"
    assert verify(SECRET, "wine-orders", made) == Origin("12")


def test_an_id_is_a_time_ordered_uuid() -> None:
    made = [mint(SECRET, "a", "1", NOW + n / 100) for n in range(100)]
    assert made == sorted(made)
    first = uuid.UUID(made[0].split("-")[0])
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert first.int >> 80 == 1_700_000_000_123


def test_ids_of_one_moment_differ() -> None:
    assert len({mint(SECRET, "a", "1", NOW) for _ in range(1000)}) == 1000


def test_an_id_is_good_for_its_app_release_and_secret_only() -> None:
    made = mint(SECRET, "a", "1", NOW)
    token, release, mac = made.split("-")
    other = mint(SECRET, "a", "1", NOW).split("-")[0]
    for app, secret, forged in [
        ("b", SECRET, made),
        ("a", b"t" * 32, made),
        ("a", SECRET, f"{token}-2-{mac}"),
        ("a", SECRET, f"{other}-{release}-{mac}"),
        ("a", SECRET, f"{token}-{release}-{'0' * len(mac)}"),
        ("a", SECRET, made.upper()),
    ]:
        with pytest.raises(NotFound) as refused:
            verify(secret, app, forged)
        assert refused.value.field == "trace_id"


@pytest.mark.parametrize("text", ["", "x", "-", "--", "가" * 51, f"{'0' * 32}-1-abc", f"{'0' * 31}-1-{'0' * 16}"])
def test_what_is_no_id_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        verify(SECRET, "a", text)
    assert refused.value.field == "trace_id"


class Gated(MemoryFeedbackStore):
    """Away until `back` is set; `asked` counts the tries."""

    def __init__(self) -> None:
        super().__init__()
        self.back = threading.Event()
        self.asked = threading.Semaphore(0)
        self.refuses: set[str] = set()

    def record_traces(self, traces: Iterable[Trace]) -> None:
        traces = list(traces)
        self.asked.release()
        if not self.back.is_set():
            raise StoreUnavailable("away")
        if self.refuses & {t.trace_id for t in traces}:
            raise BadRequest("cannot be stored")
        super().record_traces(traces)


def trace(number: int) -> Trace:
    return Trace(f"t{number}", "a", "1", NOW, "q", ())


def test_flush_waits_for_what_was_recorded() -> None:
    store = MemoryFeedbackStore()
    writer = TraceWriter(store, interval_s=60, batch=10)
    for n in range(25):
        writer.record(trace(n))
    assert writer.flush()
    assert all(store.trace(f"t{n}") == trace(n) for n in range(25))
    assert (writer.written, writer.dropped, writer.waiting) == (25, 0, 0)
    writer.close()


def test_closing_writes_what_waits() -> None:
    store = MemoryFeedbackStore()
    writer = TraceWriter(store, interval_s=60)
    writer.record(trace(1))
    writer.close()
    assert store.trace("t1") == trace(1)


def test_the_oldest_go_when_too_many_wait() -> None:
    store = Gated()
    writer = TraceWriter(store, capacity=3, interval_s=0.01)
    writer.record(trace(0))
    store.asked.acquire()  # the writer has tried, and keeps it
    for n in range(1, 6):
        writer.record(trace(n))
    assert writer.waiting == 3
    store.back.set()
    assert writer.flush()
    assert [n for n in range(6) if store.trace(f"t{n}")] == [3, 4, 5]
    assert (writer.written, writer.dropped) == (3, 3)
    writer.close()


def test_traces_that_cannot_be_stored_do_not_block_the_others() -> None:
    store = Gated()
    store.back.set()
    store.refuses = {"t1"}
    writer = TraceWriter(store, interval_s=60, batch=1)
    for n in range(3):
        writer.record(trace(n))
    assert writer.flush()
    assert [n for n in range(3) if store.trace(f"t{n}")] == [0, 2]
    assert (writer.written, writer.dropped) == (2, 1)
    writer.close()
