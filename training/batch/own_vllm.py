"""vLLM in the process of a batch job, behind the port `LanguageModel`. `training.batch.connect` makes it.

Its engine batches what is under way at once, so the job asks many at a time. It ends with the job.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from vllm import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from serving.errors import BadRequest, PhaseFailed
from serving.generate.engine_spec import engine_arguments, engine_environment, model_source
from serving.generate.replica import sampling, within
from serving.ports import LanguageRequest, Piece, Usage
from serving.schema import LanguageModelSpec

PHASE = "generate"


class OwnVllm:
    """Implements `LanguageModel`, but for adapters. Blocks while vLLM starts."""

    def __init__(self, spec: LanguageModelSpec, home: Path) -> None:
        """Raises BadRequest where `tiny` was not built."""
        self.model = spec.model
        source = model_source(spec, home)
        for name, value in engine_environment(spec, source).items():
            os.environ.setdefault(name, value)
        arguments = AsyncEngineArgs(model=source, disable_log_stats=True, **engine_arguments(spec))
        self._engine = AsyncLLM.from_engine_args(arguments)
        self._tokenizer: Any = self._engine.tokenizer
        self._most = spec.max_model_len

    async def stream(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        prompt = request.prompt or self._prompt(request)
        tokens = self._tokenizer.encode(prompt, add_special_tokens=bool(request.prompt))
        most = min(request.max_tokens, self._most - len(tokens))
        if most < 1:
            raise BadRequest(f"the prompt has {len(tokens)} tokens, but the model reads {self._most} with its answer")
        written = 0
        outputs = self._engine.generate({"prompt_token_ids": tokens}, sampling(request, most), uuid.uuid4().hex)
        try:
            async with aclosing(outputs):
                while (output := await within(anext(outputs, None), deadline)) is not None:
                    told = output.outputs[0]
                    written += len(told.token_ids)
                    usage = Usage(len(tokens), written) if output.finished else None
                    yield Piece(told.text, str(told.finish_reason or "") if output.finished else "", usage)
        except VLLMClientError as error:
            raise BadRequest(str(error)) from None
        except (EngineDeadError, EngineGenerateError) as error:
            raise PhaseFailed(f"vLLM: {type(error).__name__}: {error}", phase=PHASE) from None

    def _prompt(self, request: LanguageRequest) -> str:
        messages = [{"role": one.role, "content": one.content} for one in request.messages]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    async def load_adapter(self, name: str, folder: Path) -> None:  # noqa: ARG002 - a batch asks the base
        raise PhaseFailed(f"{name}: a batch in its own process takes no adapters", phase=PHASE)

    async def unload_adapter(self, name: str) -> None:
        """There is none."""

    async def adapters(self) -> Sequence[str]:
        return ()

    async def ready(self) -> None:
        await self._engine.check_health()

    async def close(self) -> None:
        self._engine.shutdown()
        del self._engine  # now: its destructor does not survive the end of the interpreter
