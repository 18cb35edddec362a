"""What serveConfigV2 names: the endpoint and the deployer, as Serve applications built from the environment alone.

KubeRay hands the configuration to Serve, which calls `endpoint` and `deployer` in a task of the Ray cluster. Replicas,
resources and autoscaling of the endpoint are set in serveConfigV2 under the name `Router`; the deployer is one replica,
always. Called by Serve; calls `serving.app` and `serving.cluster.deployer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ray import serve
from ray.serve import Application

from serving.app import ingress_application
from serving.cluster.deployer import DeployerReplica
from serving.config import ServingConfig
from serving.errors import BadRequest
from serving.secret_files import TRACE_SECRET_FILE, WEBHOOK_SECRET_FILE, mounted_secret

HEALTH_EVERY_S = 10.0
STOPS_WITHIN_S = 15.0


def endpoint(args: Mapping[str, str]) -> Application:
    """The HTTP endpoint, route prefix `/`. Takes no arguments. Raises BadRequest for what the environment lacks."""
    _take_none(args, "endpoint")
    return ingress_application(cluster_config())


def deployer(args: Mapping[str, str]) -> Application:
    """What brings split releases, arms and engines up beside the endpoint; no route prefix. Raises BadRequest."""
    _take_none(args, "deployer")
    return (
        serve.deployment(DeployerReplica)
        .options(
            name="Deployer",
            num_replicas=1,
            ray_actor_options={"num_cpus": 0.1},
            health_check_period_s=HEALTH_EVERY_S,
            graceful_shutdown_timeout_s=STOPS_WITHIN_S,
        )
        .bind(cluster_config())
    )


def cluster_config(env: Mapping[str, str] | None = None) -> ServingConfig:
    """The configuration of a process in a cluster. Raises BadRequest that names the variable: what one machine may
    leave to its home, several must be told."""
    config = ServingConfig.from_env(env)
    needed = {
        "PALATE_APPS": (config.apps, "the apps to serve, separated by commas"),
        "PALATE_DATABASE_URL": (config.database_url.startswith("postgres"), "a postgresql:// URL that all pods share"),
        "PALATE_MLFLOW_URI": (config.mlflow_uri, "the address of the MLflow server"),
        "PALATE_SECRETS": (config.secrets, "the folder where the Secret is mounted"),
    }
    for variable, (there, what) in needed.items():
        if not there:
            raise BadRequest(f"{variable} must be set in a cluster: {what}", field=variable)
    for name in (TRACE_SECRET_FILE, WEBHOOK_SECRET_FILE):
        mounted_secret(config.secrets or Path(), name)
    return config


def _take_none(args: Mapping[str, str], what: str) -> None:
    if args:
        raise BadRequest(f"{what} takes no arguments, not {sorted(args)}: PALATE_* variables of the pods set it up")
