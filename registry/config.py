"""How a process finds the registry: read once from `PALATE_*` variables, with bounds on what MLflow's client may do.

Called by the wiring (`registry.cli`, the serving and training processes) and by `registry.mlflow_store`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import RegistryError

# MLflow's client is set up by these variables alone. Its own defaults retry for minutes, which is right for a training
# job and wrong for a replica that must say "unavailable" in seconds. One retry mends a connection that a restarted
# server dropped. A variable that is set already wins: raise MLFLOW_HTTP_REQUEST_TIMEOUT where the server needs longer
# to store one large file (artefacts in object storage).
MLFLOW_CLIENT_DEFAULTS: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds to connect, and between two bytes of an answer
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for any wait
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to our commands
}


def bound_mlflow_client(env: MutableMapping[str, str] = os.environ) -> None:
    """Set the client's bounds for this process where nobody set them. MLflow reads some of them at import: call it
    before the first `import mlflow`."""
    for name, value in MLFLOW_CLIENT_DEFAULTS.items():
        env.setdefault(name, value)


def uri_file(home: Path) -> Path:
    """Where the MLflow server of this machine wrote its address when it last started."""
    return home / "mlflow" / "uri"


class RegistryConfig(BaseModel):
    """The environment of a process that reads or writes releases. `from_env` reads PALATE_<FIELD>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(Path.home() / ".palate", description="PALATE_HOME: all local state.")
    mlflow_uri: str = Field(
        "http://127.0.0.1:5000",
        pattern=r"^https?://[^/]+",
        description="PALATE_MLFLOW_URI: the MLflow tracking server, which serves artefacts too.",
    )
    component_cache: Path | None = Field(
        None, description="PALATE_COMPONENT_CACHE: where fetched components lie; default: `components` in home."
    )

    @property
    def components(self) -> Path:
        """The folder to pass to `ReleaseStore.fetch`."""
        return self.component_cache or self.home / "components"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> RegistryConfig:
        """An empty variable counts as not set; without PALATE_MLFLOW_URI it is the home's own server.

        Raises RegistryError that names the variable at fault.
        """
        env = os.environ if env is None else env
        values: dict[str, Any] = {n: v for n in cls.model_fields if (v := env.get(f"PALATE_{n.upper()}"))}
        local = uri_file(Path(values.get("home", Path.home() / ".palate")))
        if "mlflow_uri" not in values and local.is_file():
            values["mlflow_uri"] = local.read_text(encoding="utf-8").strip()
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise RegistryError(f"PALATE_{str(first['loc'][-1]).upper()}={first['input']!r}: {first['msg']}") from None
