"""Stand-ins that pass the same contract tests as the real adapters: for tests, and for trying an app without them."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.components.onnx_encoder import Progress
from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    Overloaded,
    PalateError,
    PhaseFailed,
    ReplicaLost,
    StoreUnavailable,
)
from serving.ports import Forgotten, LanguageRequest, Piece, ToRank, Usage, Vectors
from serving.schema import FeedbackEvent, Item, Trace, Turn
from serving.store.codec import (
    MOST_TURNS,
    ItemRow,
    check_id,
    check_limit,
    decode_cursor,
    decode_event,
    decode_item,
    decode_trace,
    decode_turn,
    encode_cursor,
    encode_event,
    encode_item,
    encode_trace,
    encode_turn,
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


class MemorySessionStore:
    """Stands in for `SqlSessionStore`: one process, nothing durable."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], list[tuple[str, Turn]]] = {}
        self._lock = threading.Lock()

    def turns(self, app: str, session: str, user: str, limit: int, after_s: float) -> list[Turn]:
        said = self._turns.get((app, session), ())
        kept = [turn for person, turn in said if person == user and turn.at_s > after_s]
        return kept[-limit:] if limit > 0 else []

    def append(self, app: str, session: str, user: str, turn: Turn) -> None:
        check_id(session, "session")
        with self._lock:
            said = [*self._turns.get((app, session), []), (user, decode_turn(encode_turn(turn)))]
            theirs = [n for n, (person, _) in enumerate(said) if person == user]
            too_old = set(theirs[:-MOST_TURNS])
            self._turns[app, session] = [one for n, one in enumerate(said) if n not in too_old]

    def purge(self, app: str, before_s: float) -> int:
        return self._drop(lambda key, said: key[0] == app and max(turn.at_s for _, turn in said) < before_s)

    def forget(self, app: str, is_gone: Callable[[str], bool]) -> int:
        def theirs(key: tuple[str, str], said: Sequence[tuple[str, Turn]]) -> bool:
            return key[0] == app and (is_gone(key[1]) or any(user and is_gone(user) for user, _ in said))

        return self._drop(theirs)

    def apps(self) -> list[str]:
        return sorted({app for app, _ in self._turns})

    def _drop(self, is_gone: Callable[[tuple[str, str], Sequence[tuple[str, Turn]]], bool]) -> int:
        with self._lock:
            gone = {key: said for key, said in self._turns.items() if is_gone(key, said)}
            self._turns = {key: said for key, said in self._turns.items() if key not in gone}
        return sum(map(len, gone.values()))


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


class FakeRanker:
    """Stands in for `WideDeepRanker`: `score_of` gives the probability of each item of a request."""

    def __init__(self, score_of: Callable[[ToRank, Item], float]) -> None:
        self.fingerprint = "fake"
        self._score_of = score_of

    def score(self, batch: Sequence[ToRank]) -> list[NDArray[np.float32]]:
        return [np.array([self._score_of(one, item) for item in one.items], np.float32) for one in batch]


Scripted = str | PalateError
"""An answer, or what is raised in its place."""


class FakeLanguageModel:
    """Stands in for `VllmModel`: answers by script (the last one again and again) or by rule, a word a piece. A token
    is a word. What a schema asks for is up to who writes the answers.

    `piece_s` passes before each piece; `dies_after` so many pieces it raises ReplicaLost, None: never; beyond
    `max_running` requests it raises Overloaded. `asked` keeps every request, `running` says how many are under way,
    `cancelled` how many were left before their end.
    """

    def __init__(
        self,
        answers: Sequence[Scripted] | Callable[[LanguageRequest], Scripted] = ("This answer was made up.",),
        *,
        piece_s: float = 0.0,
        dies_after: int | None = None,
        max_running: int = 1_000,
        max_model_len: int = 2_048,
    ) -> None:
        self.model = "fake"
        self.piece_s = piece_s
        self.dies_after = dies_after
        self.asked: list[LanguageRequest] = []
        self.running = 0
        self.cancelled = 0
        self._answers = answers
        self._max_running = max_running
        self._max_model_len = max_model_len
        self._max_adapters = 4
        self._adapters: dict[str, Path] = {}

    async def stream(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        words, prompt_tokens = self._admit(request)
        cut = words[: min(request.max_tokens, self._max_model_len - prompt_tokens)]
        self.running += 1
        sent = 0
        try:
            for sent, word in enumerate(cut, start=1):
                if sent - 1 == self.dies_after:
                    raise ReplicaLost(f"the engine of {self.model} ended")
                await self._pause(deadline)
                yield Piece(word)
            reason = "stop" if len(cut) == len(words) else "length"
            yield Piece("", reason, Usage(prompt_tokens, len(cut)))
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += sent < len(cut)
            raise
        finally:
            self.running -= 1

    def _admit(self, request: LanguageRequest) -> tuple[list[str], int]:
        self.asked.append(request)
        tokens = sum(len(text.split()) for text in (request.prompt, *(m.content for m in request.messages)))
        if tokens >= self._max_model_len:
            raise BadRequest(
                f"the prompt has {tokens} tokens, but the model reads {self._max_model_len} with its answer",
                field="messages" if request.messages else "prompt",
            )
        if request.adapter and request.adapter not in self._adapters:
            raise StoreUnavailable(f"no adapter {request.adapter!r} was loaded")
        if self.running >= self._max_running:
            raise Overloaded(f"{self.running} requests are under way", retry_after_s=1.0)
        script = self._answers
        told = script(request) if callable(script) else script[min(len(self.asked), len(script)) - 1]
        if isinstance(told, PalateError):
            raise told
        for stop in request.stop:
            told = told.partition(stop)[0]
        return re.findall(r"\s*\S+(?:\s+$)?", told), tokens

    async def _pause(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        await asyncio.sleep(max(0.0, min(self.piece_s, left)))
        if left <= self.piece_s:
            raise DeadlineExceeded(f"{self.model} did not end in time")

    async def load_adapter(self, name: str, folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise PhaseFailed(f"{folder.name} is no adapter: it has no adapter_config.json", phase="generate")
        if name not in self._adapters and len(self._adapters) >= self._max_adapters:
            raise Overloaded(f"{self._max_adapters} adapters are loaded", retry_after_s=60.0)
        self._adapters.setdefault(name, folder)

    async def unload_adapter(self, name: str) -> None:
        self._adapters.pop(name, None)

    async def adapters(self) -> Sequence[str]:
        return sorted(self._adapters)

    async def ready(self) -> None:
        return

    async def close(self) -> None:
        return
