"""`EvidenceRecorder`: what became of each request that an arm got, stored in blocks behind the answers.

`serving.arms` records one entry per request on the event loop; a thread makes blocks of them and hands these to the
evidence store, which the controller's scoreboard reads. While the database is away the blocks wait, up to a bound.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

from registry.errors import RegistryUnavailable
from registry.ports import EvidenceStore
from registry.traffic import Block, Evidence, EvidenceArm, columns
from serving import metrics
from serving.logs import get_log
from serving.periodic import Periodic

log = get_log(__name__)

FLUSH_S = 0.25
CAPACITY = 200_000
BLOCKS_PER_WRITE = 200


NO_MEASURES: Mapping[str, float] = {}


class Entry(NamedTuple):
    """One request of an arm. `outcome` is a letter of `registry.traffic`; `token` its TOKEN_CHARS characters of the
    trace id; `agreed` "1" or "0" for shadow traffic, else ""; `measures`: further numbers of this request, by name."""

    app: str
    rollout: int
    arm: EvidenceArm
    latency_ms: float
    outcome: str
    token: str
    agreed: str = ""
    measures: Mapping[str, float] = NO_MEASURES


class EvidenceRecorder:
    """At most `capacity` requests wait; beyond that the oldest are dropped, and counted in `dropped`."""

    def __init__(
        self,
        store: EvidenceStore,
        router: str,
        *,
        every_s: float = FLUSH_S,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`router` names this process in what it stores: a name is never used by two. `clock` gives Unix seconds."""
        self.dropped = 0
        self._store = store
        self._router = router
        self._capacity = capacity
        self._clock = clock
        self._fresh: deque[Entry] = deque()
        self._blocks: deque[Evidence] = deque()
        self._in_blocks = 0
        self._seq = 0
        self._away = False
        self._flusher = Periodic("evidence", every_s, self._flush)

    @property
    def waiting(self) -> int:
        """Requests that are not stored yet."""
        return len(self._fresh) + self._in_blocks

    def record(self, entry: Entry) -> None:
        """Never blocks. Called on one thread, the event loop's."""
        if len(self._fresh) >= self._capacity:  # the flusher hangs in the store
            self._drop(1 if self._take() is not None else 0)
        self._fresh.append(entry)

    def close(self, timeout_s: float = 5.0) -> None:
        """Store what waits, if the store takes it now."""
        if self._flusher.close(timeout_s):
            self._flush()
        if self.waiting:
            log.error("evidence.lost", requests=self.waiting)
            self._drop(self.waiting)

    def _flush(self) -> None:
        self._make_blocks()
        size = BLOCKS_PER_WRITE
        while self._blocks:
            batch = list(islice(self._blocks, size))
            try:
                self._store.add(batch)
            except RegistryUnavailable as error:
                if not self._away:
                    log.warning("evidence.store.away", waiting=self.waiting, detail=str(error))
                self._away = True
                return
            except Exception as error:  # one block that cannot be stored must not keep all others
                if len(batch) > 1:
                    size = 1
                    continue
                log.error("evidence.refused", blocks=len(batch), error=repr(error), exc_info=True)
                self._drop(sum(len(evidence.block.outcomes) for evidence in batch))
            self._away = False
            for evidence in batch:
                self._blocks.popleft()
                self._in_blocks -= len(evidence.block.outcomes)

    def _make_blocks(self) -> None:
        """A block per arm of what came since the last. Once numbered it never changes: a write that may have happened
        is repeated as it was."""
        arms: dict[tuple[str, int, EvidenceArm], list[Entry]] = {}
        while (entry := self._take()) is not None:
            arms.setdefault((entry.app, entry.rollout, entry.arm), []).append(entry)
        now = self._clock()
        for (app, rollout, arm), entries in arms.items():
            self._seq += 1
            block = Block(
                now,
                tuple(entry.latency_ms for entry in entries),
                "".join(entry.outcome for entry in entries),
                "".join(entry.token for entry in entries),
                "".join(entry.agreed for entry in entries),
                columns([entry.measures for entry in entries]),
            )
            self._blocks.append(Evidence(app, rollout, self._router, self._seq, arm, block))
            self._in_blocks += len(entries)
        while self._in_blocks > self._capacity:
            oldest = len(self._blocks.popleft().block.outcomes)
            self._in_blocks -= oldest
            self._drop(oldest)

    def _take(self) -> Entry | None:
        try:
            return self._fresh.popleft()
        except IndexError:
            return None

    def _drop(self, requests: int) -> None:
        self.dropped += requests
        if requests:
            metrics.EVIDENCE_DROPPED.inc(requests)
