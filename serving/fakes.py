"""Stand-ins that pass the same contract tests as the real adapters: for tests, and for trying an app without them."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from serving.components.onnx_encoder import Progress
from serving.errors import BadRequest
from serving.ports import Forgotten, Vectors
from serving.schema import FeedbackEvent, Item, Trace
from serving.store.codec import (
    ItemRow,
    check_limit,
    decode_cursor,
    decode_event,
    decode_item,
    decode_trace,
    encode_cursor,
    encode_event,
    encode_item,
    encode_trace,
)


class MemoryItemStore:
    """Stands in for `SqlItemStore`: one process, nothing durable."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, tuple[int, ItemRow | None]]] = {}
        self._seq: dict[str, int] = {}
        self._lock = threading.Lock()

    def upsert(self, app: str, items: Sequence[Item]) -> int:
        return self._write(app, {row.id: row for row in map(encode_item, items)})

    def delete(self, app: str, ids: Sequence[str]) -> int:
        return self._write(app, dict.fromkeys(ids))

    def get(self, app: str, ids: Sequence[str]) -> list[Item | None]:
        rows = [self._rows.get(app, {}).get(i, (0, None))[1] for i in ids]
        return [None if row is None else decode_item(*row) for row in rows]

    def page(self, app: str, limit: int, cursor: str | None) -> tuple[list[Item], str | None]:
        check_limit(limit)
        last = decode_cursor(cursor)
        found = list(islice((item for item in self.scan(app) if item.id > last), limit + 1))
        return found[:limit], encode_cursor(found[limit - 1].id) if len(found) > limit else None

    def changes(self, app: str, after_seq: int, limit: int) -> tuple[list[Item], list[str], int]:
        check_limit(limit)
        with self._lock:
            rows = [(seq, i, row) for i, (seq, row) in self._rows.get(app, {}).items() if seq > after_seq]
        rows = sorted(rows, key=lambda change: change[0])[:limit]
        upserted = [decode_item(*row) for _, _, row in rows if row is not None]
        return upserted, [i for _, i, row in rows if row is None], rows[-1][0] if rows else after_seq

    def scan(self, app: str) -> Iterator[Item]:
        with self._lock:
            rows = sorted(row for _, row in self._rows.get(app, {}).values() if row is not None)
        return (decode_item(*row) for row in rows)

    def count(self, app: str) -> int:
        return sum(1 for _ in self.scan(app))

    def sequence(self, app: str) -> int:
        return self._seq.get(app, 0)

    def _write(self, app: str, rows: Mapping[str, ItemRow | None]) -> int:
        with self._lock:
            stored = self._rows.setdefault(app, {})
            for item_id, row in rows.items():
                if stored.get(item_id, (0, None))[1] != row:
                    self._seq[app] = self._seq.get(app, 0) + 1
                    stored[item_id] = (self._seq[app], row)
        return self.sequence(app)


class MemoryFeedbackStore:
    """Stands in for `SqlFeedbackStore`: one process, nothing durable."""

    def __init__(self) -> None:
        self._traces: dict[str, str] = {}
        self._events: dict[str, dict[str, tuple[int, str]]] = {}
        self._seq: dict[str, int] = {}
        self._lock = threading.Lock()

    def record_traces(self, traces: Iterable[Trace]) -> None:
        bodies = {trace.trace_id: encode_trace(trace) for trace in traces}
        with self._lock:
            self._traces = {**bodies, **self._traces}

    def trace(self, trace_id: str) -> Trace | None:
        body = self._traces.get(trace_id)
        return None if body is None else decode_trace(body)

    def traces(self, trace_ids: Sequence[str]) -> dict[str, Trace]:
        found = {trace_id: self.trace(trace_id) for trace_id in trace_ids}
        return {trace_id: trace for trace_id, trace in found.items() if trace is not None}

    def purge(self, before_s: float) -> int:
        with self._lock:
            kept = {i: body for i, body in self._traces.items() if decode_trace(body).at_s >= before_s}
            purged, self._traces = len(self._traces) - len(kept), kept
        return purged

    def record(self, event: FeedbackEvent) -> bool:
        return self.record_many([event])[0]

    def record_many(self, events: Sequence[FeedbackEvent]) -> list[bool]:
        bodies = [encode_event(event) for event in events]
        new = []
        with self._lock:
            for event, body in zip(events, bodies, strict=True):
                stored = self._events.setdefault(event.app, {})
                new.append(event.event_id not in stored)
                if new[-1]:
                    self._seq[event.app] = self._seq.get(event.app, 0) + 1
                    stored[event.event_id] = (self._seq[event.app], body)
        return new

    def events(self, app: str, after: int, limit: int) -> list[tuple[int, FeedbackEvent]]:
        check_limit(limit)
        with self._lock:
            numbered = list(self._events.get(app, {}).values())
        return [(seq, decode_event(body)) for seq, body in numbered if seq > after][:limit]

    def apps(self) -> list[str]:
        return sorted({decode_trace(body).app for body in self._traces.values()} | set(self._seq))

    def forget(self, app: str, is_gone: Callable[[str], bool]) -> Forgotten:
        with self._lock:
            traces = {i: trace for i, body in self._traces.items() if (trace := decode_trace(body)).app == app}
            events = {i: decode_event(body) for i, (_, body) in self._events.get(app, {}).items()}
            theirs = {i for i, event in events.items() if event.user is not None and is_gone(event.user)}
            gone = {i for i, trace in traces.items() if trace.user is not None and is_gone(trace.user)}
            gone |= {t for i in theirs if (t := events[i].trace_id) in traces and traces[t].user is None}
            theirs |= {i for i, event in events.items() if event.trace_id in gone}
            self._traces = {i: body for i, body in self._traces.items() if i not in gone}
            for event_id in theirs:
                del self._events[app][event_id]
        return Forgotten(len(gone), len(theirs))


class FakeEmbedder:
    """Stands in for `OnnxEmbedder`: character trigrams hashed into `dimension` buckets (the hashing trick, Weinberger
    et al. 2009, arXiv 0902.2206). Texts that share spelling are near; meaning is beyond it."""

    def __init__(self, dimension: int = 64) -> None:
        if dimension < 1:
            raise BadRequest(f"dimension is {dimension}; use 1 or more", field="dimension")
        self.dimension = dimension
        self.fingerprint = hashlib.sha256(f"fake trigrams {dimension}".encode()).hexdigest()

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            padded = f"  {text.casefold()} "
            for start in range(len(padded) - 2):
                row[zlib.crc32(padded[start : start + 3].encode()) % self.dimension] += 1
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        vectors = self.embed(texts)
        if progress and texts:
            progress(len(texts), len(texts))
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Its trigrams."""
        return sum(len(text.casefold()) + 1 for text in texts)
