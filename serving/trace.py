"""Trace ids, which are also the feedback tokens, and the writer that stores traces behind the answers.

The router mints an id per query and hands its trace to `TraceWriter`; the feedback route verifies the id it gets back.
An id proves itself: no database is asked, so feedback is accepted while the database is away.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
from collections import deque
from itertools import islice
from typing import NamedTuple

from serving.errors import BadRequest, NotFound, StoreUnavailable
from serving.logs import get_log
from serving.ports import FeedbackStore
from serving.schema import Trace

log = get_log(__name__)

ID_CHARS = 32
MAC_BYTES = 8
MAC_CHARS = 2 * MAC_BYTES
_VERSION_7 = 7 << 76
_VARIANT_MASK = (1 << 76) - 1 - (3 << 62)
_VARIANT = 2 << 62
_ARM_LETTERS = {"canary": "c", "control": "k"}
_ARMS = {letter: arm for arm, letter in _ARM_LETTERS.items()}
_ARM_LABEL = re.compile(r"(.+)\.([1-9][0-9]*)([ck])")


class Origin(NamedTuple):
    """What answered: a release, and where it did so as an arm of a rollout, which one ("canary" or "control")."""

    release: str
    rollout: int = 0
    arm: str = ""


def mint(secret: bytes, app: str, release: str, now: float) -> str:
    """A trace id for a plain answer of a release. `secret` has 16 to 32 bytes; `now` is Unix seconds."""
    return stamp(secret, app, new_token(now), Origin(release))


def new_token(now: float) -> str:
    """32 hex digits: a version 7 UUID of RFC 9562, Unix milliseconds, then 74 random bits. `now` is Unix seconds."""
    random = int.from_bytes(os.urandom(10))
    return f"{(int(now * 1000) & 0xFFFFFFFFFFFF) << 80 | _VERSION_7 | random & _VARIANT_MASK | _VARIANT:032x}"


def stamp(secret: bytes, app: str, token: str, origin: Origin) -> str:
    """A trace id: the token, the release, for an arm's answer `.{rollout}c` (canary) or `.{rollout}k` (control), and a
    64-bit MAC over all of it and the app."""
    label = f"{origin.release}.{origin.rollout}{_ARM_LETTERS[origin.arm]}" if origin.arm else origin.release
    return f"{token}-{label}-{_mac(secret, token, app, label)}"


def verify(secret: bytes, app: str, trace_id: str) -> Origin:
    """What answered. Raises BadRequest for what cannot be a trace id, NotFound for one this app did not mint."""
    token, _, rest = trace_id.partition("-")
    label, _, mac = rest.rpartition("-")
    if len(token) != ID_CHARS or len(mac) != MAC_CHARS or not label or not trace_id.isascii():
        raise BadRequest("trace_id is not one that a query returned: send it back unchanged", field="trace_id")
    if not hmac.compare_digest(mac, _mac(secret, token, app, label)):
        raise NotFound(f"{app} answered no query with this trace_id", field="trace_id")
    of_arm = _ARM_LABEL.fullmatch(label)
    if of_arm is None:
        return Origin(label)
    release, rollout, letter = of_arm.groups()
    return Origin(release, int(rollout), _ARMS[letter])


def _mac(secret: bytes, token: str, app: str, label: str) -> str:
    # The token has a fixed length and an app's name no "/", so no two inputs give the same text
    return hashlib.blake2s(f"{token}{app}/{label}".encode(), key=secret, digest_size=MAC_BYTES).hexdigest()


class TraceWriter:
    """Stores traces in batches from a thread of its own, so that an answer never waits for the database.

    Traces are not acknowledged to anybody: when more than `capacity` wait, the oldest are dropped and counted in
    `dropped`. `written` counts those stored.
    """

    def __init__(
        self, store: FeedbackStore, *, capacity: int = 10_000, batch: int = 500, interval_s: float = 0.2
    ) -> None:
        self.written = 0
        self.dropped = 0
        self._store = store
        self._capacity = capacity
        self._batch = batch
        self._interval_s = interval_s
        self._queue: deque[Trace] = deque()
        self._recorded = 0
        self._done = 0
        self._changed = threading.Condition()
        self._hurry = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def record(self, trace: Trace) -> None:
        """Never blocks on the store."""
        with self._changed:
            self._queue.append(trace)
            self._recorded += 1
            if len(self._queue) > self._capacity:
                self._queue.popleft()
                self._count(dropped=1)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until every trace recorded before was stored or dropped; False if that took longer."""
        with self._changed:
            target = self._recorded
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done >= target, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Store what waits, for at most about `timeout_s`, and stop."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._hurry or self._closed, self._interval_s)
                self._hurry = False
            self._drain()

    def _drain(self) -> None:
        """Store batch after batch. While the database is away they wait; what cannot be stored at all is dropped."""
        while batch := self._peek():
            try:
                self._store.record_traces(batch)
            except StoreUnavailable as error:
                log.warning("traces.wait", waiting=self.waiting, detail=str(error.__cause__ or error))
                return
            except Exception as error:  # the outermost loop of a worker must not end
                log.error("traces.refused", count=len(batch), error=repr(error), exc_info=True)
                self._take(batch, stored=False)
            else:
                self._take(batch, stored=True)

    def _peek(self) -> list[Trace]:
        with self._changed:
            return list(islice(self._queue, self._batch))

    def _take(self, batch: list[Trace], *, stored: bool) -> None:
        """Take the batch off the queue: those of it that were not dropped from its left meanwhile."""
        with self._changed:
            left = {id(trace) for trace in batch}
            taken = 0
            while self._queue and id(self._queue[0]) in left:
                self._queue.popleft()
                taken += 1
            self._count(**{"written" if stored else "dropped": taken})

    def _count(self, written: int = 0, dropped: int = 0) -> None:
        self.written += written
        self.dropped += dropped
        self._done += written + dropped
        self._changed.notify_all()
