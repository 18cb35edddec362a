"""The language model of an app, as the process that asks it reaches it. Called where a release is loaded: by the router
and the arms of rollouts, and by offline jobs.

What speaks to it is imported on first use: Ray for an engine of this platform, the `openai` client for another server.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.ports import LanguageModel
from serving.schema import LanguageModelSpec


def connect_language_model(spec: LanguageModelSpec, env: Mapping[str, str] | None = None) -> LanguageModel:
    """Returns at once, whether or not the model is up: `ready` says so, and a stream waits for it within its deadline.
    Call it once for each release and process, and `close` what it returned. `env` holds the key of an OpenAI-compatible
    server (default: `os.environ`). Engine `vllm` needs a process that is connected to Ray.

    Raises BadRequest where the key is missing.
    """
    if spec.engine == "openai":
        from serving.generate.openai_model import OpenaiModel

        return OpenaiModel(spec, env)
    from serving.generate.engine_spec import engine_application_name
    from serving.generate.vllm_model import VllmModel

    return VllmModel(spec.model, engine_application_name(spec))
