"""The language model of a batch: behind an OpenAI-compatible server, or vLLM in this process. Called by
`training.commands.batch` and by apps' own scripts."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from serving.ports import LanguageModel
from serving.schema import LanguageModelSpec
from training.errors import BatchStopped

KEY = "PALATE_BATCH_KEY"
"""Under this name a key is handed on; it is never in the environment."""


def read_key(variable: str = "", file: Path | None = None) -> str:
    """A key from a file or an environment variable, "" where neither is named. Raises BatchStopped where what is named
    holds none."""
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BatchStopped(f"the key file {file} cannot be read: {error.strerror}") from None
        if not key:
            raise BatchStopped(f"the key file {file} is empty")
        return key
    if variable and not os.environ.get(variable):
        raise BatchStopped(f"the environment variable {variable} that should hold the key is not set")
    return os.environ[variable] if variable else ""


@asynccontextmanager
async def server_model(
    url: str, model: str, key: str = "", timeout_s: float = 120.0
) -> AsyncGenerator[LanguageModel, None]:
    """`url` ends where /chat/completions begins, usually in /v1."""
    from serving.generate.openai_model import OpenaiModel

    spec = LanguageModelSpec(
        engine="openai", model=model, base_url=url, key_env=KEY if key else "", timeout_s=timeout_s, retries=1
    )
    connected = OpenaiModel(spec, {KEY: key})
    try:
        yield connected
    finally:
        await connected.close()


@asynccontextmanager
async def own_model(model: str, home: Path, max_model_len: int = 2048) -> AsyncGenerator[LanguageModel, None]:
    """vLLM in this process and its own; for `tiny`, a folder in Hugging Face format, or a name on the hub. Starts in
    half a minute or more. Raises BatchStopped without vLLM, BadRequest where `tiny` was not built."""
    try:
        from training.batch.own_vllm import OwnVllm
    except ModuleNotFoundError as error:
        raise BatchStopped(
            f"vLLM in this process needs {error.name!r}: install vLLM, or name a server with --url"
        ) from None
    started = OwnVllm(LanguageModelSpec(model=model, max_model_len=max_model_len, max_adapters=0), home)
    try:
        yield started
    finally:
        await started.close()
