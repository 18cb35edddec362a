"""The language model of an engine (`serving.generate.engine`), reached through a Ray Serve handle.

`serving.generate.connect` makes it in a process that is connected to Ray: the router, an arm, `palate up`, a job. Every
call ends: with its answer, or with an error that says what became of the engine. What may be sent again is: as long as
nothing was streamed, a request whose replica was lost is tried once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving.errors import DeadlineExceeded, Overloaded, PalateError, PhaseFailed, ReplicaLost, StoreUnavailable
from serving.generate.engine import engine_handle
from serving.generate.replica import PHASE, AdapterMissing, Admitted, EngineState
from serving.ports import LanguageRequest, Piece

UP_WITHIN_S = 5.0
"""How long a request waits for an engine that is away before it is refused; an engine that starts takes far longer."""
CONTROL_S = 120.0
"""The same, for calls that load adapters: the first of them reads the whole base for its digest."""
AGAIN_AFTER_S = 0.2
FAULTS = (PalateError, RayError, RayServeException, grpc.RpcError, RuntimeError)
"""What a handle raises: the method's own error, or what became of the call."""


class Handles(NamedTuple):
    """`streaming` passes by value: pieces are small, and the object store only adds a trip to each."""

    plain: DeploymentHandle
    streaming: DeploymentHandle


class VllmModel:
    """Implements `LanguageModel`. Use it on one event loop."""

    def __init__(self, model: str, application: str, *, threaded: bool = False) -> None:
        """`application`: the engine's. `threaded`: a thread of Serve's own routes the calls. That takes a little time,
        and is for processes that outlive the event loop on which they ask."""
        self.model = model
        self._application = application
        self._threaded = threaded
        self._handles: Handles | None = None
        self._folders: dict[str, Path] = {}

    async def stream(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        up_by = min(deadline, time.monotonic() + UP_WITHIN_S)
        again = 1
        while True:
            told = False
            pieces = self._try(request, deadline)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        told = True
                        yield piece
                return
            except AdapterMissing:
                # A replica that started anew gets its adapters from who deploys them, or from here where they are
                # known.
                if time.monotonic() >= up_by:
                    raise
                if request.adapter in self._folders:
                    await self.load_adapter(request.adapter, self._folders[request.adapter])
            except ReplicaLost:
                again -= 1
                if told or again < 0 or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _try(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        handles = await self._connected()
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"the deadline had passed before {self.model} was asked")
        response = handles.streaming.generate.remote(request, left)
        ended = False
        try:
            await self._admitted(response, deadline)
            while not ended:
                piece = await self._next(response, deadline)
                if piece is None:
                    raise ReplicaLost(f"the engine of {self.model} ended the answer in its middle")
                ended = bool(piece.finish_reason)
                yield piece
        finally:
            if not ended:
                with suppress(*FAULTS):  # a call that reached no replica has nothing to cancel
                    response.cancel()

    async def _admitted(self, response: Any, deadline: float) -> None:
        """A replica has the request. Raises StoreUnavailable where none takes it."""
        up_by = time.monotonic() + UP_WITHIN_S
        try:
            first = await self._next(response, min(deadline, up_by))
        except DeadlineExceeded:
            if up_by < deadline:
                raise StoreUnavailable(f"the engine of {self.model} is not up") from None
            raise
        if not isinstance(first, Admitted):
            raise ReplicaLost(f"the engine of {self.model} ended")

    async def _next(self, response: Any, deadline: float) -> Any:
        """What comes next, None at the end. Raises PalateError."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await anext(response, None)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.model} did not finish the answer in time") from None
        except FAULTS as error:
            raise self._fault(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ReplicaLost(f"the engine of {self.model}: Serve gave the call up") from None

    def _fault(self, error: Exception) -> PalateError:
        """What Ray raised, as what the caller can act upon."""
        cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else None
        found = cause or error
        if isinstance(found, PalateError):
            return found
        if cause is not None:
            return PhaseFailed(f"the engine of {self.model}: {type(cause).__name__}: {cause}", phase=PHASE)
        if isinstance(error, BackPressureError):
            return Overloaded(f"too many requests wait for the engine of {self.model}", retry_after_s=2.0)
        reason = (str(error).strip().splitlines() or [""])[0]
        return ReplicaLost(f"the engine of {self.model}: {type(error).__name__}: {reason}")

    # --- adapters

    async def load_adapter(self, name: str, folder: Path) -> None:
        """On every replica there is; one that starts later gets it with the first request that needs it."""
        self._folders[name] = folder
        if not all(await self._all("load_adapter", name, str(folder))):
            files = await asyncio.to_thread(_files, folder)
            await self._all("load_adapter", name, str(folder), files)

    async def unload_adapter(self, name: str) -> None:
        self._folders.pop(name, None)
        await self._all("unload_adapter", name)

    async def adapters(self) -> Sequence[str]:
        """Those that every replica has."""
        found = await self._all("adapters")
        return sorted(set(found[0]).intersection(*found[1:])) if found else []

    # --- the engine

    async def ready(self) -> None:
        await self._all("ready", within_s=UP_WITHIN_S)

    async def state(self) -> list[EngineState]:
        """Of each replica."""
        return await self._all("state", within_s=UP_WITHIN_S)

    async def close(self) -> None:
        self._handles = None

    async def _all(self, method: str, *arguments: Any, within_s: float = CONTROL_S) -> list[Any]:
        """Every replica's answer. Raises PalateError."""
        handles = await self._connected()
        try:
            async with asyncio.timeout(within_s):
                found = await handles.plain.broadcast(method, *arguments).results_async()
        except TimeoutError:
            raise StoreUnavailable(f"the engine of {self.model} is not up") from None
        except FAULTS as error:
            fault = self._fault(error)
            if isinstance(fault, ReplicaLost):
                raise StoreUnavailable(f"the engine of {self.model} is not up: {fault.detail}") from None
            raise fault from None
        if not found:
            raise StoreUnavailable(f"the engine of {self.model} has no replica that runs")
        return list(found)

    async def _connected(self) -> Handles:
        if self._handles is None:
            handle = await asyncio.to_thread(engine_handle, self._application)
            if self._threaded and not handle.is_initialized:
                handle._init(_run_router_in_separate_loop=True)
            self._handles = Handles(handle, handle.options(stream=True, _by_reference=False))
        return self._handles


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
