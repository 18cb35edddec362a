"""What an engine is, as the `language_model` of an app says it: its name, its model, its arguments. Pure, without Ray:
used by `serving.generate.engine`, which deploys it, and by whoever only needs to know which one it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from registry.content import digest_json
from serving.errors import BadRequest
from serving.schema import LanguageModelSpec

ENGINE = "engine"
"""Name of the deployment, and how the name of the application begins."""
ENGINE_NAME = re.compile(r"engine-[a-z0-9-]+-[0-9a-f]{10}")
SETTINGS = (
    "model", "max_model_len", "dtype", "max_adapters", "max_adapter_rank", "replicas", "num_gpus", "num_cpus",
    "engine_args",
)  # fmt: skip
"""What tells engines apart; the rest of a `LanguageModelSpec` is about asking them."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks that vLLM can make room for."""
EMPTY_CPU_SLOTS = 1
"""On CPU, vLLM 0.32 computes a text without an adapter, in a batch where another has one, with the weights of the last
slot (its index is -1): one slot stays empty."""
CPU_KV_CACHE_BYTES = 2**29


def engine_key(spec: LanguageModelSpec) -> str:
    """10 hex digits over the model and the engine settings: equal where one engine serves both."""
    settings = spec.model_dump(mode="json", include=set(SETTINGS))
    return digest_json(settings)[:10]


def engine_application_name(spec: LanguageModelSpec) -> str:
    """`engine-<model>-<key>`; the model in it is for people."""
    model = re.sub(r"[^a-z0-9]+", "-", Path(spec.model).name.lower()).strip("-")[:40]
    return f"{ENGINE}-{model or 'model'}-{engine_key(spec)}"


def tiny_model_folder(home: Path) -> Path:
    return home / "models" / "tiny"


def model_source(spec: LanguageModelSpec, home: Path) -> str:
    """What vLLM is told to load: a folder, or a name on the hub. Raises BadRequest where `tiny` was not built."""
    if spec.model == "tiny":
        folder = tiny_model_folder(home)
        if not (folder / "config.json").is_file():
            raise BadRequest(
                f"language_model.model is `tiny`, but there is no model in {folder}: make it with "
                "`palate models build tiny`",
                field="language_model.model",
            )
        return str(folder)
    return spec.model


def engine_arguments(spec: LanguageModelSpec) -> dict[str, Any]:
    """vLLM's engine arguments; those of `spec.engine_args` win."""
    on_cpu = not spec.num_gpus
    arguments: dict[str, Any] = {
        "max_model_len": spec.max_model_len,
        # Half precision is emulated on most CPUs.
        "dtype": "float32" if on_cpu and spec.dtype == "auto" else spec.dtype,
        "enable_prefix_caching": True,
        # White space without end satisfies every schema: models that are unsure write nothing else.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if spec.max_adapters:
        rank = next(rank for rank in RANKS if rank >= spec.max_adapter_rank)
        slots = spec.max_adapters + (EMPTY_CPU_SLOTS if on_cpu else 0)
        arguments |= {"enable_lora": True, "max_loras": slots, "max_cpu_loras": slots, "max_lora_rank": rank}
    if spec.num_gpus > 1:
        arguments["tensor_parallel_size"] = int(spec.num_gpus)
    if on_cpu:
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
    return {**arguments, **spec.engine_args}


def engine_environment(spec: LanguageModelSpec, source: str) -> dict[str, str]:
    """Of the replica's process and those that vLLM starts from it."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if Path(source).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if not spec.num_gpus:
        environment |= {
            # As many threads as Ray was told of, wherever the kernel puts them, and asleep while they wait: bound or
            # spinning they take the cores that the router beside them needs.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, int(spec.num_cpus))),
            "OMP_WAIT_POLICY": "passive",
        }
    return environment
