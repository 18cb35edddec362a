"""An engine: vLLM behind a Ray Serve application of its own, shared by every app and release whose base and engine
settings are the same.

`serving.local.engines` deploys it and `serving.generate.vllm_model` speaks to it. `ray.serve.llm` starts vLLM (GPUs and
placement groups in a cluster, the CPU on a laptop); requests go to vLLM's engine itself, by tokens and pieces, not
through its OpenAI layer. Only a replica imports vLLM: whoever deploys an engine or asks it stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.errors import StoreUnavailable
from serving.generate.engine_spec import (
    ENGINE,
    engine_application_name,
    engine_arguments,
    engine_environment,
    model_source,
)
from serving.generate.replica import EngineReplica
from serving.schema import LanguageModelSpec

QUEUED = 256
"""Requests that wait in one process for an engine that is full or away before more are refused."""


def engine_application(spec: LanguageModelSpec, home: Path, log_to: str = "stderr") -> Application:
    """Raises BadRequest where its model is missing."""
    source = model_source(spec, home)
    arguments = engine_arguments(spec)
    workers = arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
    gpu = {"GPU": spec.num_gpus / workers} if spec.num_gpus else {}
    bundles = [{"CPU": spec.num_cpus, **gpu}] + [dict(gpu) for _ in range(workers - 1) if gpu]
    settings: dict[str, Any] = {
        "model_loading_config": {"model_id": engine_application_name(spec), "model_source": source},
        "accelerator_config": {"kind": "gpu" if gpu else "cpu"},
        "placement_group_config": {"bundles": bundles},
        "engine_kwargs": arguments,
        # vLLM's own metrics, in the format of every other process here, not Ray's.
        "log_engine_metrics": False,
    }
    environment = {"env_vars": engine_environment(spec, source)}
    return (
        serve.deployment(EngineReplica)
        .options(
            name=ENGINE,
            num_replicas=spec.replicas,
            # It admits by the room of its KV cache, not by counting.
            max_ongoing_requests=10_000,
            max_queued_requests=QUEUED,
            ray_actor_options={"num_cpus": spec.num_cpus, "runtime_env": environment},
            placement_group_bundles=bundles,
            placement_group_strategy="PACK",
            health_check_period_s=1.0,
            health_check_timeout_s=10.0,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=20.0,
        )
        .bind(settings, log_to)
    )


def deploy_engine(spec: LanguageModelSpec, home: Path, log_to: str = "stderr") -> None:
    """Deploy it as a Serve application and return at once; safe to repeat. Raises BadRequest."""
    serve.run_many(
        [RunTarget(engine_application(spec, home, log_to), name=engine_application_name(spec), route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def engine_handle(application: str) -> DeploymentHandle:
    """Raises StoreUnavailable where it was not deployed. Blocks for some milliseconds."""
    try:
        return serve.get_deployment_handle(ENGINE, application)
    except (RayServeException, KeyError, ValueError) as error:
        raise StoreUnavailable(f"the engine {application} is not deployed: {error}") from None
