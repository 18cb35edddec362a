"""Starts vLLM as `ray.serve.llm` does: on the replica's placement group, with Ray's workers on GPUs, or on the CPU.
Imported by a replica of an engine only: this is what imports vLLM.

What is left out of it: its OpenAI layer, which batches pieces for 50 ms and takes adapters from object stores only; a
process that fetches models from such stores; and one that reports to Ray's makers. Each of the two is a Python with
vLLM in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer


class Server(LLMServer):  # type: ignore[misc]  # Ray has no types
    """As the original, without telemetry."""

    async def _start_engine(self) -> None:
        await self.engine.start()


async def start_engine(settings: Mapping[str, Any]) -> Any:
    """vLLM's `AsyncLLM`, ready to answer. `settings` are those of `LLMConfig`."""
    config = LLMConfig(**settings)
    config.get_or_create_callback().ctx.run_init_node = False
    server: Any = Server.sync_init(config)
    await server.start()
    return server.engine._engine_client
