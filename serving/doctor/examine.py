"""Every check of one installation, in the order in which a person would look: this machine, then what it needs, then
what it serves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.errors import RegistryError
from registry.mlflow_store import MlflowStore
from serving.config import ServingConfig
from serving.doctor import checks, probes
from serving.doctor.checks import Finding
from serving.secret_files import TRACE_SECRET_FILE, WEBHOOK_SECRET_FILE
from serving.store.people import MOUNTED_SECRET


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look. Empty: there is none, and what would be asked there is skipped."""

    config: ServingConfig
    mlflow_uri: str
    endpoint: str = ""
    metrics: str = ""
    dashboard: str = ""
    chroma: str = ""
    in_cluster: bool = False


def examine(place: Place) -> Iterator[Finding]:
    yield checks.versions(*probes.libraries())
    yield from checks.home(str(place.config.home), *probes.home(place.config.home))
    if place.config.secrets is not None:
        folder = place.config.secrets
        missing = probes.mounted_secrets(folder, [WEBHOOK_SECRET_FILE], [TRACE_SECRET_FILE, MOUNTED_SECRET])
        yield checks.mounted_secrets(str(folder), missing)
    yield from checks.database(*probes.database(place.config.database))
    specs: dict[str, Mapping[str, Any]] = {}
    yield from _registry(place, specs)
    if place.chroma:
        reach, _ = probes.http(f"{place.chroma.rstrip('/')}/api/v2/heartbeat")
        yield checks.reached("Chroma", reach, "see that it runs and that PALATE_CHROMA_URL is right")
    gpus_there = None if place.in_cluster else probes.local_gpus()
    if place.dashboard:
        reach, answer = probes.http(f"{place.dashboard}/api/serve/applications/", _ray_headers())
        applications = probes.json_of(answer).get("applications", {})
        yield from checks.ray(reach, {name: str(app.get("status")) for name, app in applications.items()})
        gpus_there = _ray_gpus(place.dashboard)
    yield checks.gpus(gpus_wanted(specs), gpus_there)
    yield from _endpoint(place)


def _registry(place: Place, specs: dict[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Fills `specs` with the app specs of stable releases."""
    reach, _ = probes.http(f"{place.mlflow_uri.rstrip('/')}/health")
    fix = "see that it runs, that PALATE_MLFLOW_URI is right, and that NetworkPolicies let this pod reach it"
    yield checks.reached("MLflow", reach, fix)
    if reach.problem:
        return
    yield checks.clock("MLflow", reach.skew_s)
    try:
        store = MlflowStore(place.mlflow_uri)
    except RegistryError as error:
        yield Finding("MLflow client", "failed", str(error), "set PALATE_MLFLOW_URI to an http or https address")
        return
    for app in place.config.apps:
        specs[app], problem, missing = probes.stable(store, app)
        yield checks.stable(app, problem, missing)


def _endpoint(place: Place) -> Iterator[Finding]:
    if not place.endpoint:
        yield Finding("endpoint", "skipped", "nothing runs here", "palate up starts it; PALATE_URL names another")
        return
    reach, answer = probes.http(f"{place.endpoint}/readyz")
    problems = probes.json_of(answer).get("problems", {})
    yield from checks.endpoint(reach, problems)
    if reach.problem:
        return
    yield checks.clock("endpoint", reach.skew_s)
    reach, answer = probes.http(place.metrics or f"{place.endpoint}/metrics")
    if reach.problem or answer is None:
        yield checks.reached("metrics", reach, "see that the metrics port is open to this pod")
    else:
        yield checks.metrics(answer.text, [app for app in place.config.apps if app not in problems])


def gpus_wanted(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """App -> the most GPUs that one replica of it takes; only those that take some."""
    found = {}
    for app, spec in specs.items():
        units = (spec.get("placement") or {}).get("units") or {}
        model = spec.get("language_model") or {}
        most = max([float(unit.get("num_gpus") or 0) for unit in units.values()] + [float(model.get("num_gpus") or 0)])
        if most:
            found[app] = most
    return found


def _ray_headers() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    return {"authorization": f"Bearer {token}"} if token else {}


def _ray_gpus(dashboard: str) -> float | None:
    """GPUs of the cluster's nodes now; None when it does not say. Autoscaled nodes count once they are there."""
    _, answer = probes.http(f"{dashboard}/api/cluster_status?format=0", _ray_headers())
    usage = ((probes.json_of(answer).get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
    there = usage.get("usage")
    return None if there is None else float((there.get("GPU") or [0.0, 0.0])[1])
