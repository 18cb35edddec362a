"""Asks a language model with the patience that offline work has. Called by workers of `training.batch`.

What may pass (no room, a cut connection, an engine that starts anew) is waited for, with growing waits that hold for
all requests; then the job ends: one that went on while a server was restarting would look as if it had succeeded. What
the model does not take (a prompt that is too long, say) is the line's own fault, unless everything is refused; so is
what it fails at, again and again, while it answers something else.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import dataclass

from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    Overloaded,
    PalateError,
    PhaseFailed,
    ReplicaLost,
    StoreUnavailable,
)
from serving.ports import LanguageModel, LanguageRequest, Message, Usage
from training.errors import BatchStopped

PASSES = (Overloaded, StoreUnavailable, ReplicaLost, DeadlineExceeded)
REFUSALS_IN_A_ROW = 20
EASY = LanguageRequest((Message("user", "Say yes."),), max_tokens=16)
"""What a model that is there answers."""


@dataclass(frozen=True, slots=True)
class Patience:
    """`tries`: how often one request is sent before the model counts as away. Waits grow from `backoff_s` to
    `longest_wait_s`, which also bounds what the model asks for. `within_s`: longest wait for one answer."""

    tries: int = 8
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    within_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`refusal`: why the model did not take the request; then the rest is empty."""

    text: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    refusal: str = ""


class Asker:
    """`at_once` requests at a time: for a server that batches, that is the size of the batch."""

    def __init__(self, model: LanguageModel, at_once: int = 32, patience: Patience | None = None) -> None:
        self.model = model
        self.at_once = at_once
        self._patience = patience or Patience()
        self._slots = asyncio.Semaphore(at_once)
        self._jitter = random.Random(0)
        self._not_before = 0.0
        self._refused_in_a_row = 0

    async def ask(self, request: LanguageRequest) -> Answer:
        """Raises BatchStopped where the model is away, broken, or refuses one request after the other."""
        fault: PalateError | None = None
        async with self._slots:
            for attempt in range(self._patience.tries):
                await self._pause()
                try:
                    answer = await self._once(request)
                except BadRequest as error:
                    return self._refused(error.detail)
                except PASSES as error:
                    fault = error
                    self._hold(attempt, error.retry_after_s if isinstance(error, Overloaded) else None)
                except PhaseFailed as error:
                    if error.field is not None:  # this input is at fault
                        return self._refused(error.detail)
                    raise BatchStopped(f"{self.model.model}: {error.detail}") from None
                else:
                    self._refused_in_a_row = 0
                    return answer
            why = f"did not answer in {self._patience.tries} tries, at last: {type(fault).__name__}: {fault}"
            if not isinstance(fault, Overloaded) and await self._is_there():
                return self._refused(f"{self.model.model} {why}")
        raise BatchStopped(f"{self.model.model} {why}. What was done is kept: run it again when the model is back")

    async def _is_there(self) -> bool:
        await self._pause()
        try:
            await self._once(EASY)
        except BadRequest:
            return True
        except (*PASSES, PhaseFailed):
            return False
        return True

    async def _once(self, request: LanguageRequest) -> Answer:
        text, reason, usage = "", "", None
        pieces = self.model.stream(request, time.monotonic() + self._patience.within_s)
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece.text
                reason, usage = piece.finish_reason or reason, piece.usage or usage
        # Of a character that came in two pieces the halves are joined; half a one cannot be written.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return Answer(text, reason, usage)

    def _refused(self, why: str) -> Answer:
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSALS_IN_A_ROW:
            raise BatchStopped(
                f"{self.model.model} refused {self._refused_in_a_row} inputs in a row, at last: {why}. Where it "
                "knows no JSON schemas, ask without one"
            )
        return Answer(refusal=why)

    def _hold(self, attempt: int, told_s: float | None) -> None:
        """All requests wait: what one was told about the model holds for the others."""
        patience = self._patience
        wait_s = patience.backoff_s * 2**attempt if told_s is None else told_s
        wait_s = min(wait_s, patience.longest_wait_s) * self._jitter.uniform(1.0, 1.3)
        self._not_before = max(self._not_before, time.monotonic() + wait_s)

    async def _pause(self) -> None:
        while (wait_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
