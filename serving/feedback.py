"""`FeedbackRecorder`: feedback is durable before it is acknowledged, whether the database is there or not.

The feedback route calls `record`. One thread writes to the store, several waiting events in one transaction; when the
store is away or slow, the event goes to the local spool instead, and the same thread replays the spool when the store
is back. An event's id makes that safe: however often it is written, it is stored once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from serving.errors import PalateError, StoreUnavailable
from serving.logs import get_log
from serving.ports import FeedbackStore
from serving.schema import FeedbackEvent
from serving.spool import Spool, SpoolFile
from serving.store.base import chunks
from serving.store.codec import decode_event, encode_event

log = get_log(__name__)

BATCH = 200
LESSONS = 20
"""Events of a spool that teach before new ones get their turn."""
Learn = Callable[[FeedbackEvent], None]


class Recorded(NamedTuple):
    """Where an event is durable now; `duplicate`: it was stored before."""

    event_id: str
    stored: Literal["database", "spool", "duplicate"]


@dataclass(slots=True)
class FeedbackCounters:
    """Events since the start, by what became of them. `replayed` were taken from a spool into the store (those it
    already had are not counted); `damaged` lines of a spool could not be read and are kept in a `.damaged` file."""

    stored: int = 0
    duplicate: int = 0
    spooled: int = 0
    replayed: int = 0
    damaged: int = 0
    refused: int = 0
    learn_failed: int = 0


class _Waiting(NamedTuple):
    event: FeedbackEvent
    new: Future[bool]


class FeedbackRecorder:
    """`learn` is called, after the event is stored, for each new selection of a known user with its raw text; a
    failure there is counted and costs only the lesson."""

    def __init__(
        self,
        store: FeedbackStore,
        spool_folder: Path,
        learn: Learn | None = None,
        *,
        bound_s: float = 2.0,
        retry_s: float = 1.0,
    ) -> None:
        """`bound_s` is the longest that `record` waits for the store before it spools; every `retry_s` the worker
        tries to replay. Raises StoreUnavailable when the spool's folder cannot be made."""
        self.counters = FeedbackCounters()
        self._store = store
        self._learn = learn
        self._bound_s = bound_s
        self._retry_s = retry_s
        try:
            self._spool = Spool(spool_folder)
        except OSError as error:
            raise StoreUnavailable(f"the folder of the feedback spool cannot be made: {error.strerror}") from error
        self._away = False
        self._counting = threading.Lock()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._worker = threading.Thread(target=self._run, name="feedback-recorder", daemon=True)
        self._worker.start()

    @property
    def pending(self) -> int:
        """Events of this process (and of dead ones it took over) that wait in the spool."""
        return self._spool.pending

    @property
    def away(self) -> bool:
        """The store was not usable when last tried."""
        return self._away

    def record(self, event: FeedbackEvent) -> Recorded:
        """Durable when it returns; blocks for a commit or an fsync, at most about `bound_s`.

        Raises BadRequest for an event that cannot be stored, StoreUnavailable when neither the store nor the spool
        takes it: nothing is acknowledged then.
        """
        line = encode_event(event).encode()
        if not self._away and not self._closed.is_set():
            waiting = _Waiting(event, Future())
            self._waiting.put(waiting)
            try:
                new = waiting.new.result(self._bound_s)
            except (TimeoutError, StoreUnavailable) as error:
                waiting.new.cancel()
                self._went_away(error)
            else:
                return Recorded(event.event_id, "database" if new else "duplicate")
        try:
            self._spool.append(line)
        except OSError as error:
            self._count("refused")
            raise StoreUnavailable(
                f"the database cannot be used now, nor the feedback spool ({error.strerror or error}): "
                "free some disk space, then send it again"
            ) from error
        self._count("spooled")
        return Recorded(event.event_id, "spool")

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop the worker; what waits in the spool stays there for the next start. Later events go to the spool."""
        self._closed.set()
        self._waiting.put(None)
        self._worker.join(timeout_s)
        self._spool.close()

    def _run(self) -> None:
        next_replay = 0.0
        while not self._closed.is_set():
            try:
                self._serve(self._retry_s)
                if time.monotonic() >= next_replay:
                    next_replay = time.monotonic() + self._retry_s
                    self._replay()
            except Exception as error:  # the outermost loop of a worker must not end
                log.error("feedback.worker", error=repr(error), exc_info=True)
                self._closed.wait(self._retry_s)

    def _serve(self, wait_s: float) -> None:
        """Record what waits now, at most BATCH; waits `wait_s` for the first."""
        batch: list[_Waiting] = []
        try:
            first = self._waiting.get(timeout=wait_s) if wait_s else self._waiting.get_nowait()
            while first is not None:
                # A caller that gave up has spooled its event
                if first.new.set_running_or_notify_cancel():
                    batch.append(first)
                if len(batch) == BATCH:
                    break
                first = self._waiting.get_nowait()
        except queue.Empty:
            pass
        if batch:
            self._record_batch(batch)

    def _record_batch(self, batch: Sequence[_Waiting]) -> None:
        try:
            new = self._store.record_many([waiting.event for waiting in batch])
        except Exception as error:  # noqa: BLE001 - handed to each caller, who raises it; none is acknowledged
            for waiting in batch:
                waiting.new.set_exception(error)
            return
        self._away = False
        for waiting, is_new in zip(batch, new, strict=True):
            waiting.new.set_result(is_new)
        self.counters.stored += sum(new)
        self.counters.duplicate += len(new) - sum(new)
        self._teach(waiting.event for waiting, is_new in zip(batch, new, strict=True) if is_new)

    def _replay(self) -> None:
        """Bring every spooled event that can be had into the store; a file goes when all of it is in."""
        self._spool.adopt_orphans()
        if not self._away and not self._spool.pending:
            return
        try:
            self._store.record_many([])  # while it is away, the spool's file stays open: one file an outage
            for file in self._spool.seal():
                damaged = self._replay_file(file)
                self._spool.done(file, damaged=damaged > 0)
                self.counters.damaged += damaged
        except StoreUnavailable as error:
            self._went_away(error)
        else:
            self._away = False

    def _replay_file(self, file: SpoolFile) -> int:
        """The number of its lines that could not be read. Raises StoreUnavailable; the whole file is tried again."""
        damaged = 0

        def events() -> Iterator[FeedbackEvent]:
            nonlocal damaged
            for line in file.lines():
                try:
                    yield decode_event(line)
                except ValueError:
                    damaged += 1
                    log.error("feedback.spool.damaged", file=file.path.name)

        for batch in chunks(events(), BATCH):
            new = self._store.record_many(batch)
            self._away = False
            fresh = [event for event, is_new in zip(batch, new, strict=True) if is_new]
            self.counters.replayed += len(fresh)
            for lesson in chunks(fresh, LESSONS):
                self._teach(lesson)
                self._serve(0)  # new events do not wait for a long spool
        return damaged

    def _teach(self, events: Iterable[FeedbackEvent]) -> None:
        for event in events:
            if self._learn is None or not (event.selected and event.user and event.raw):
                continue
            try:
                self._learn(event)
            except PalateError as error:
                self.counters.learn_failed += 1
                log.warning("feedback.learn", event_id=event.event_id, detail=error.detail)

    def _count(self, name: Literal["refused", "spooled"]) -> None:
        with self._counting:  # callers' threads count these two
            setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _went_away(self, error: BaseException) -> None:
        if not self._away:
            log.warning("feedback.store.away", detail=str(error.__cause__ or error) or "slower than its bound")
        self._away = True
