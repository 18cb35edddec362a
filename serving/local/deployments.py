"""The Serve applications of this machine: keeps those of split releases what they should be (level-triggered), and says
what runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray import serve

from registry.errors import ReleaseNotFound
from registry.ports import ReleaseStore
from serving.app import INGRESS, deploy_split, split_application_name
from serving.config import ServingConfig
from serving.schema import AppSpec

KEEP = 2
"""The stable release and the one before it, so that routers move on before the old units go."""


def reconcile_split(apps: Sequence[str], store: ReleaseStore, config: ServingConfig) -> None:
    """Deploy what `stable` points at; delete applications of versions older than the last `KEEP` deployed."""
    running = serve.status().applications
    for app in apps:
        try:
            version = store.get(app, "stable")
        except ReleaseNotFound:
            continue
        spec = AppSpec.model_validate(version.release.spec)
        wanted = split_application_name(app, version.version)
        if spec.placement.default == "split" and wanted not in running:
            deploy_split(spec, version, config)
        prefix = split_application_name(app, 0).removesuffix("0")
        versions = sorted(int(n.removeprefix(prefix)) for n in running if n.startswith(prefix) and n != INGRESS)
        for old in versions[:-KEEP]:
            if old != version.version:
                serve.delete(split_application_name(app, old), _blocking=False)


def describe() -> dict[str, Any]:
    """Serve application -> deployment -> its replicas by state, and what of Ray's resources is in use."""
    applications = {
        name: {
            deployment: {str(getattr(state, "value", state)): count for state, count in status.replica_states.items()}
            for deployment, status in application.deployments.items()
        }
        for name, application in serve.status().applications.items()
    }
    total, free = ray.cluster_resources(), ray.available_resources()
    used = {
        name: [round(total[name] - free.get(name, 0.0), 2), total[name]] for name in ("CPU", "GPU") if name in total
    }
    return {"deployments": applications, "resources_used": used}
