"""Keeps the Serve applications of split releases what they should be, on one machine. Level-triggered."""

from __future__ import annotations

from collections.abc import Sequence

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
