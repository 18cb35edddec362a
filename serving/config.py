"""How this process is set up: one frozen tree, read once from `PALATE_*` variables, handed to whoever needs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import BadRequest


class Limits(BaseModel):
    """What one request, and one replica, may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="A longer request body is refused with 413.")
    max_queries: int = Field(64, ge=1, description="Most texts in one query request.")
    max_query_chars: int = Field(20_000, ge=1, description="Longest query text.")
    max_top_k: int = Field(100, ge=1, description="Most results per query.")
    max_messages: int = Field(200, ge=1, description="Most messages of a chat request.")
    max_tokens: int = Field(4096, ge=1, description="Longest answer that a bare language model is asked for.")
    max_items: int = Field(1000, ge=1, description="Most items in one upsert or delete.")
    max_batch: int = Field(16, ge=1, description="Most queries that go through the pipeline together.")
    max_queue: int = Field(1024, ge=1, description="Queries waiting per app; one more is refused with 429.")
    rate_per_s: float = Field(
        0.0, ge=0, description="Requests per second and key where the key sets none; 0: no limit."
    )


class ServingConfig(BaseModel):
    """The environment of a serving process. `from_env` reads PALATE_<FIELD>, e.g. PALATE_HOME."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(Path.home() / ".palate", description="All local state.")
    secrets: Path | None = Field(
        None,
        description="A folder with mounted secrets, read instead of those made in home; in a cluster, where home "
        "is a pod's own.",
    )
    database_url: str = Field("", repr=False, description="SQLAlchemy URL; default: SQLite in home.")
    mlflow_uri: str = Field("", description="MLflow tracking server.")
    apps: tuple[str, ...] = Field((), description="Apps to serve: names of MLflow registered models.")
    embedding_cache: int = Field(20_000, ge=0, description="Query vectors kept per release; 0: no cache.")
    threads: int = Field(0, ge=0, description="Compute threads of a replica; 0: all cores this process may use.")
    refresh_s: float = Field(
        2.0, gt=0, description="How often MLflow is asked for `stable` of an app that no controller has taken on."
    )
    traffic_poll_s: float = Field(0.2, gt=0, description="How often a router asks what its traffic shall be.")
    trace_retention_days: float = Field(90.0, ge=0, description="Days that traces are kept; 0: for good.")
    ready_within_s: float = Field(
        0.0,
        ge=0,
        description="How long a starting endpoint waits for the stable releases there are before it takes "
        "requests for those that serve; 0: not at all.",
    )
    follow_s: float = Field(0.5, gt=0, description="How often the catalogue is asked for changes.")
    arm_memory_mb: int = Field(
        2048, ge=0, description="MiB of memory that an inline arm of a rollout may gain once it is ready; 0: no limit."
    )
    poll_s: float = Field(2.0, gt=0, description="How often the controller asks MLflow where the aliases stand.")
    controller_port: int = Field(
        0, ge=0, le=65535, description="Where the controller answers /healthz, /readyz and /metrics; 0: nowhere."
    )
    kserve_namespace: str = Field(
        "",
        description="Namespace of the InferenceServices, named as the apps, that the controller drives; empty: none.",
    )
    kubernetes_api: str = Field("", description="Address of the API server; empty: the cluster this process runs in.")
    webhook_url: str = Field("", description="Where MLflow shall send webhooks: the endpoint's; empty: polling only.")
    webhook_secret: str = Field("", repr=False, description="What MLflow signs webhooks with; default: one in home.")
    log: str = Field("stderr", description="Where JSON logs go: `stderr` or a file.")
    limits: Limits = Limits()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'palate.db'}"

    @property
    def component_cache(self) -> Path:
        return self.home / "components"

    @property
    def compute_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> ServingConfig:
        """Raises BadRequest that names the variable at fault."""
        env = os.environ if env is None else env
        values: dict[str, Any] = {}
        limits: dict[str, str] = {}
        for name in cls.model_fields:
            text = env.get(f"PALATE_{name.upper()}")
            if name != "limits" and text is not None:
                values[name] = tuple(a for a in text.split(",") if a) if name == "apps" else text
        for name in Limits.model_fields:
            if (text := env.get(f"PALATE_{name.upper()}")) is not None:
                limits[name] = text
        try:
            return cls.model_validate({**values, "limits": limits})
        except ValidationError as error:
            first = error.errors()[0]
            variable = f"PALATE_{str(first['loc'][-1]).upper()}"
            raise BadRequest(f"{variable}={first['input']!r}: {first['msg']}", field=variable) from None
