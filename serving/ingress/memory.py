"""What a session remembers, as the query routes use it: its turns before a query, one more after its answer.

A session store that is away takes nothing but the memory: the query goes on without it, and its answer says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from serving.errors import StoreUnavailable
from serving.logs import get_log
from serving.pipeline import Answer
from serving.ports import SessionStore
from serving.schema import AppSpec, Query, Turn
from serving.schema.pseudonym import pseudonym
from serving.store.codec import check_id
from serving.understand.turns import turn_of

log = get_log(__name__)

PATIENCE_S = 1.0
"""How long an answer waits for a store that hangs, before it and after it."""


class Memory:
    """`secret` gives the one behind people's pseudonyms; `clock` Unix seconds."""

    def __init__(self, store: SessionStore, secret: Callable[[], bytes], clock: Callable[[], float]) -> None:
        self._store = store
        self._make_secret = secret
        self._clock = clock

    @cached_property
    def _secret(self) -> bytes:
        return self._make_secret()

    async def recall(self, spec: AppSpec, query: Query) -> tuple[Query, bool]:
        """The query with the turns that its session remembers, and whether they could be read. A query that brings
        turns of its own keeps these. Raises BadRequest for a session id that cannot be one."""
        memory = spec.understand.memory
        if memory is None or query.session is None or memory.turns == 0:
            return query, True
        check_id(query.session, "session")
        if query.history:
            return query, True
        after_s = self._clock() - memory.expire_s
        try:
            async with asyncio.timeout(PATIENCE_S):
                turns = await asyncio.to_thread(self._turns, spec.name, query, memory.turns, after_s)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("memory.away", app=spec.name, detail=str(error))
            return query, False
        return replace(query, history=tuple(turns)), True

    async def remember(self, spec: AppSpec, query: Query, answer: Answer, text: str) -> bool:
        """Keep the turn; whether it is kept. `text` is what was generated, "" for nothing."""
        if spec.understand.memory is None or query.session is None or spec.understand.memory.turns == 0:
            return True
        shown = [candidate.id for line in answer.lines for candidate in line.result.candidates]
        turn = turn_of(answer.lines[0].understood, text, shown, self._clock())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.to_thread(self._append, spec.name, query, turn)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("memory.away", app=spec.name, detail=str(error))
            return False
        return True

    def _turns(self, app: str, query: Query, limit: int, after_s: float) -> list[Turn]:
        return self._store.turns(app, query.session or "", self._person(query), limit, after_s)

    def _append(self, app: str, query: Query, turn: Turn) -> None:
        self._store.append(app, query.session or "", self._person(query), turn)

    def _person(self, query: Query) -> str:
        return pseudonym(self._secret, query.user or "")
