"""One replica of an engine: vLLM, started by `ray.serve.llm`, with its adapters and its admission.

Serve makes it (`serving.generate.engine`), `serving.generate.vllm_model` calls its methods through a handle. vLLM is
imported when the replica starts, not with this module. Its own process computes; this one reads prompts and passes
pieces on.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from registry.content import digest_folder
from serving.errors import BadRequest, DeadlineExceeded, Overloaded, PhaseFailed, ReplicaLost, StoreUnavailable
from serving.generate.admission import KvRoom
from serving.generate.engine_spec import EMPTY_CPU_SLOTS
from serving.logs import configure_logs, get_log
from serving.ports import LanguageRequest, Piece, Usage

log = get_log(__name__)

PHASE = "generate"
PACE_S = 0.0015
"""Pieces are collected for so long for each request under way: one alone gets each token as it comes, many get a few at
once, since passing a piece on costs a core that has tokens to make."""
SLOWEST_PACE_S = 0.05
LEAVES_S = 300.0
"""How long an adapter that was unloaded may be used by what began before: the longest deadline an app can have."""
LOOK_S = 0.02
CONTROL = re.compile(r"[\x00-\x1f]")
BASE_FILE = "base.json"
CONFIG_FILE = "adapter_config.json"


class Admitted(NamedTuple):
    """The first that a stream says: the engine has the request. Everything after it is a `Piece`."""

    prompt_tokens: int


class AdapterMissing(StoreUnavailable):
    """This replica has not got the adapter yet, or started anew since."""


class EngineState(NamedTuple):
    """What the engine is doing, as vLLM counts it, and what was promised of its KV cache."""

    running: int
    waiting: int
    kv_used_ratio: float
    blocks: int
    reserved_blocks: int
    pid: int


@dataclass(slots=True)
class Adapters:
    """Those that vLLM was told of, by served name. `leaving`: those that no request gets any more, but that vLLM still
    has; `users`: how many requests are under way with each; `removals`: what takes them out of vLLM."""

    most: int
    requests: dict[str, Any] = field(default_factory=dict)
    leaving: dict[str, Any] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)
    removals: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    numbers: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class EngineReplica:
    """Ready means: vLLM has loaded the model and answers."""

    async def __init__(self, settings: Mapping[str, Any], log_to: str) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logs(log_to)
        from serving.generate.ray_llm import start_engine

        self._engine = await start_engine(settings)
        config = self._engine.vllm_config
        self._model_len: int = config.model_config.max_model_len
        self._room = KvRoom(config.cache_config.num_gpu_blocks, config.cache_config.block_size, time.monotonic)
        slots = config.lora_config.max_loras if config.lora_config else 0
        on_cpu = config.device_config.device_type == "cpu"
        self._adapters = Adapters(max(0, slots - EMPTY_CPU_SLOTS) if on_cpu else slots)
        self._folder = Path(config.model_config.model)
        self._digest = ""
        self._copies = Path(tempfile.mkdtemp(prefix="palate-adapters-"))
        log.info("engine.ready", model=str(self._folder), kv_blocks=self._room.blocks)

    # --- answers

    async def generate(self, request: LanguageRequest, within_s: float) -> AsyncGenerator[Admitted | Piece, None]:
        """`Admitted`, then the pieces. Leaving it ends the request in vLLM. Raises as `LanguageModel.stream`, and
        AdapterMissing."""
        deadline = time.monotonic() + within_s
        with self._using(request.adapter) as lora:
            prompt = await self._prompt(request)
            prompt_tokens = len(prompt["prompt_token_ids"])
            most = min(request.max_tokens, self._model_len - prompt_tokens)
            if most < 1:
                raise BadRequest(
                    f"the prompt has {prompt_tokens} tokens, but the model reads {self._model_len} with its answer",
                    field="messages" if request.messages else "prompt",
                )
            blocks = self._room.admit(prompt_tokens + most)
            try:
                yield Admitted(prompt_tokens)
                pieces = self._pieces(prompt, sampling(request, most), lora, deadline)
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
            finally:
                self._room.release(blocks)

    async def _pieces(self, prompt: Any, params: Any, lora: Any, deadline: float) -> AsyncGenerator[Piece, None]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        outputs = self._engine.generate(prompt, params, uuid.uuid4().hex, lora_request=lora)
        written = 0
        try:
            async with aclosing(outputs):
                while True:
                    began = time.monotonic()
                    output = await within(anext(outputs, None), deadline)
                    if output is None:
                        return
                    told = output.outputs[0]
                    text = as_json(told.text) if params.structured_outputs else told.text
                    written += len(told.token_ids)
                    if output.finished:
                        yield Piece(text, *_end(told.finish_reason, len(output.prompt_token_ids), written))
                        return
                    if text:
                        yield Piece(text)
                        await self._pace(began, deadline)
        except EngineDeadError:
            raise ReplicaLost("vLLM ended while it answered") from None
        except VLLMClientError as error:
            raise BadRequest(str(error), field="schema" if params.structured_outputs else None) from None
        except (EngineGenerateError, ValueError) as error:
            cause = error.__cause__ or error
            raise PhaseFailed(f"vLLM: {type(cause).__name__}: {cause}", phase=PHASE) from None

    async def _pace(self, began: float, deadline: float) -> None:
        """vLLM joins the pieces that wait meanwhile."""
        pace_s = min(PACE_S * self._engine.get_num_unfinished_requests(), SLOWEST_PACE_S)
        now = time.monotonic()
        if pace_s >= 2 * PACE_S and now < deadline:
            await asyncio.sleep(max(0.0, min(began + pace_s, deadline) - now))

    async def _prompt(self, request: LanguageRequest) -> Any:
        """Tokens, as vLLM takes them. Raises BadRequest, PhaseFailed."""
        from vllm.exceptions import VLLMClientError
        from vllm.renderers.params import ChatParams

        renderer = self._engine.renderer
        try:
            if request.prompt:
                return (await renderer.render_cmpl_async([{"prompt": request.prompt}]))[0]
            messages = [{"role": message.role, "content": message.content} for message in request.messages]
            _, prompts = await renderer.render_chat_async(
                [messages], ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tokenize": False})
            )
            return prompts[0]
        except VLLMClientError as error:
            raise BadRequest(str(error), field="prompt" if request.prompt else "messages") from None
        except ValueError as error:
            raise PhaseFailed(f"vLLM could not make a prompt of the messages: {error}", phase=PHASE) from None

    # --- adapters

    async def load_adapter(self, name: str, folder: str, files: Mapping[str, bytes] | None = None) -> bool:
        """Serve the adapter in `folder`, or made of `files`, as `name`; again does nothing. False: there is no such
        folder on this machine, send the files. Raises PhaseFailed, Overloaded."""
        if self._has(name):
            return True
        async with self._adapters.lock:
            if self._has(name):
                return True
            path = Path(folder)
            if files is not None:
                path = await asyncio.to_thread(_write, self._copies / name, files)
            elif not path.is_dir():
                return False
            await self._add(name, path)
        return True

    def _has(self, name: str) -> bool:
        """One that was about to go stays."""
        if name in self._adapters.leaving:
            self._adapters.requests[name] = self._adapters.leaving.pop(name)
        return name in self._adapters.requests

    async def _add(self, name: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        await asyncio.to_thread(self._check_adapter, name, folder)
        held = sorted([*self._adapters.requests, *self._adapters.leaving])
        if len(held) >= self._adapters.most:
            raise Overloaded(
                f"the engine holds {self._adapters.most} adapters, {held}: raise language_model.max_adapters",
                retry_after_s=60.0,
            )
        self._adapters.numbers += 1
        request = LoRARequest(lora_name=name, lora_int_id=self._adapters.numbers, lora_path=str(folder))
        try:
            await self._engine.add_lora(request)
        except EngineDeadError:
            raise StoreUnavailable("vLLM ended; the engine starts anew") from None
        except Exception as error:  # noqa: BLE001 - vLLM passes on whatever its worker raised
            raise PhaseFailed(f"vLLM does not take the adapter {name}: {_last_line(error)}", phase=PHASE) from None
        self._adapters.requests[name] = request
        log.info("engine.adapter.loaded", adapter=name)

    def _check_adapter(self, name: str, folder: Path) -> None:
        """Raises PhaseFailed where the adapter was trained on another base."""
        if not (folder / CONFIG_FILE).is_file():
            raise PhaseFailed(f"{name} is no adapter: it has no {CONFIG_FILE}", phase=PHASE)
        try:
            base = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return  # not trained here: vLLM looks at the shapes
        except ValueError as error:
            raise PhaseFailed(f"{name}: its {BASE_FILE} cannot be read: {error}", phase=PHASE) from None
        if not self._digest and self._folder.is_dir():
            self._digest = digest_folder(self._folder)[0]
        if self._digest and base.get("digest") != self._digest:
            raise PhaseFailed(
                f"{name} belongs to {base.get('model')!r} ({str(base.get('digest'))[:12]}), but this engine runs "
                f"{self._folder.name!r} ({self._digest[:12]}): train it on this base",
                phase=PHASE,
            )

    async def unload_adapter(self, name: str) -> None:
        """No new request gets it from now on. Returns when those under way are through, and vLLM is rid of it; a caller
        that does not wait for that does not stop it."""
        adapters = self._adapters
        if name in adapters.requests:
            adapters.leaving[name] = adapters.requests.pop(name)
        if name in adapters.leaving and name not in adapters.removals:
            adapters.removals[name] = asyncio.create_task(self._remove(name))
        if name in adapters.removals:
            await asyncio.shield(adapters.removals[name])

    async def _remove(self, name: str) -> None:
        """From vLLM, once nothing uses it, unless it is loaded again before. vLLM would load an adapter that a request
        still has anew, from files that are gone, and end."""
        adapters = self._adapters
        until = time.monotonic() + LEAVES_S
        try:
            while name in adapters.leaving:
                if adapters.users[name] and time.monotonic() < until:
                    await asyncio.sleep(LOOK_S)
                    continue
                async with adapters.lock:
                    if adapters.users[name] and time.monotonic() < until:
                        continue  # meanwhile it was loaded again, asked, and unloaded again
                    request = adapters.leaving.pop(name, None)
                    if request is not None:
                        await self._engine.remove_lora(request.lora_int_id)
                        await asyncio.to_thread(shutil.rmtree, self._copies / name, ignore_errors=True)
                        log.info("engine.adapter.unloaded", adapter=name)
        finally:
            # Here and not in a callback, which runs later: an unload that came in between would wait for this task.
            del adapters.removals[name]

    async def adapters(self) -> Sequence[str]:
        return sorted(self._adapters.requests)

    @contextmanager
    def _using(self, name: str) -> Iterator[Any]:
        if not name:
            yield None
            return
        if name not in self._adapters.requests:
            raise AdapterMissing(f"this engine has no adapter {name} yet")
        self._adapters.users[name] += 1
        try:
            yield self._adapters.requests[name]
        finally:
            self._adapters.users[name] -= 1
            if not self._adapters.users[name]:
                del self._adapters.users[name]

    # --- itself

    async def ready(self) -> None:
        """Raises StoreUnavailable when vLLM is dead."""
        if self._engine.errored:
            raise StoreUnavailable("vLLM ended; the engine starts anew")

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def state(self) -> EngineState:
        from vllm.v1.metrics.reader import get_metrics_snapshot

        gauges = {metric.name: metric.value for metric in get_metrics_snapshot() if hasattr(metric, "value")}
        return EngineState(
            int(gauges.get("vllm:num_requests_running", 0)),
            int(gauges.get("vllm:num_requests_waiting", 0)),
            float(gauges.get("vllm:kv_cache_usage_perc", 0.0)),
            self._room.blocks,
            self._room.reserved,
            os.getpid(),
        )

    def __del__(self) -> None:
        if copies := getattr(self, "_copies", None):
            shutil.rmtree(copies, ignore_errors=True)


def sampling(request: LanguageRequest, max_tokens: int) -> Any:
    """vLLM's parameters. Raises BadRequest."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=list(request.stop),
            seed=request.seed,
            structured_outputs=StructuredOutputsParams(json=dict(request.schema)) if request.schema else None,
            output_kind=RequestOutputKind.DELTA,
        )
    except (VLLMValidationError, ValueError) as error:
        raise BadRequest(str(error)) from None


def as_json(text: str) -> str:
    """A part of a JSON document, with the control characters escaped that xgrammar lets into strings. There is no white
    space outside strings, so they are in one."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


async def within(waited: Any, deadline: float) -> Any:
    """Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await waited
    except TimeoutError:
        raise DeadlineExceeded("the engine did not finish the answer in time") from None


def _end(reason: str | None, prompt_tokens: int, written: int) -> tuple[str, Usage]:
    if reason not in ("stop", "length"):
        raise PhaseFailed(f"vLLM ended the answer: {reason}", phase=PHASE)
    return reason, Usage(prompt_tokens, written)


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / Path(name).name).write_bytes(content)
    return folder


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
