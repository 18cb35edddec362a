"""KServe as the controller sees it, played by the test: its webhook's rules, its controller's status, and people who
edit InferenceServices. By facts read in KServe's source (0.21): `validateCanarySpecs`, `validatePredictor`,
`reconcileCanaryDeployments`."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import httpx

from registry.kserve_traffic.mapping import MODE, NOT_ON_A_CANARY, RELEASE, STANDARD, collection
from tests.api_objects import Object, Refusal, Schema
from tests.api_server import ApiServer, Kind

NAMESPACE = "palate"
WHERE = collection(NAMESPACE)
CRD = Path(__file__).parent / "chart" / "crds" / "serving.kserve.io_inferenceservices.json"


@functools.cache
def schema() -> Schema:
    """KServe's own."""
    return Schema.of(json.loads(CRD.read_bytes()), "v1beta1")


def admit(service: Object) -> None:
    """KServe's validating webhook."""
    predictor, canaries = service["spec"]["predictor"], service["spec"].get("canary") or ()
    if canaries and (service["metadata"].get("annotations") or {}).get(MODE) != STANDARD:
        _deny("canary is only supported in Standard deployment mode")
    if canaries and "model" not in predictor:
        _deny("canary requires a stable predictor with a model")
    if predictor.get("model", {}).get("name"):
        _deny("the 'name' field is not allowed in standard predictor")
    names = [entry["predictor"].get("name", "") for entry in canaries]
    for entry, name in zip(canaries, names, strict=True):
        if not name or names.count(name) > 1 or name == predictor.get("name"):
            _deny(f"canary predictor.name {name!r} is missing, duplicated or stable's own")
        if "model" not in entry["predictor"]:
            _deny(f"canary {name!r} predictor: exactly one implementation must be given")
        if refused := [key for key in NOT_ON_A_CANARY if key in entry["predictor"]]:
            _deny(f"canary {name!r} must not set {refused[0]}")
        if entry["predictor"].get("minReplicas", 1) > predictor.get("minReplicas", 1):
            _deny(f"canary {name!r} minReplicas must not exceed stable predictor minReplicas")
    if sum(entry["trafficPercent"] for entry in canaries) > 100:
        _deny("the sum of canary trafficPercent must not exceed 100")


def _deny(message: str) -> None:
    raise Refusal(403, "Forbidden", f'admission webhook "inferenceservice.kserve-webhook-server" denied: {message}')


def server(token: str = "") -> ApiServer:
    return ApiServer({WHERE: Kind("serving.kserve.io/v1beta1", "InferenceService", schema(), admit)}, token)


def service(app: str, **predictor: Any) -> Object:
    """As the chart makes it: a model of a runtime that holds the container."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": app, "annotations": {MODE: STANDARD}},
        "spec": {
            "predictor": {
                "minReplicas": 2,
                "maxReplicas": 6,
                "model": {
                    "modelFormat": {"name": "palate"},
                    "runtime": "palate",
                    "args": ["--app", app],
                },
                **predictor,
            }
        },
    }


class Kserve:
    """Its controller, and a person with kubectl, over HTTP. `broken`: predictors whose pods do not become ready."""

    def __init__(self, client: httpx.Client, app: str = "wines") -> None:
        self.client = client
        self.app = app
        self.broken: set[str] = set()
        self.pods: dict[str, str] = {}
        """Predictor -> the release its pods were started for; they are new when that changes."""
        self.started: list[str] = []

    def create(self, **predictor: Any) -> None:
        answer = self.client.post(WHERE, json=service(self.app, **predictor))
        assert answer.status_code == 201, answer.text

    def get(self) -> Object:
        answer = self.client.get(f"{WHERE}/{self.app}")
        assert answer.status_code == 200, answer.text
        found: Object = answer.json()
        return found

    def step(self) -> None:
        """Start and end pods, and write the status."""
        found = self.get()
        predictor = found["spec"]["predictor"]
        canaries = found["spec"].get("canary") or []
        wanted = {p.get("name", ""): (p.get("labels") or {}).get(RELEASE, "") for p in
                  [predictor, *(entry["predictor"] for entry in canaries)]}  # fmt: skip
        for name, release in wanted.items():
            if self.pods.get(name) != release:
                self.started.append(name)
        self.pods = wanted
        status = {
            "conditions": [
                {"type": "PredictorReady", "status": "False" if predictor.get("name", "") in self.broken else "True"}
            ],
            "canaryStatuses": [
                {
                    "name": entry["predictor"]["name"],
                    "ready": entry["predictor"]["name"] not in self.broken
                    and entry["predictor"].get("minReplicas", entry["trafficPercent"]) > 0,
                    "trafficPercent": entry["trafficPercent"],
                }
                for entry in canaries
            ],
        }
        if not canaries:
            del status["canaryStatuses"]
        if found.get("status") != status:
            found["status"] = status
            answer = self.client.put(f"{WHERE}/{self.app}/status", json=found)
            assert answer.status_code == 200, answer.text

    def edit(self, change: Any, manager: str = "kubectl-edit") -> None:
        """A person changes the object: `change` gets its spec."""
        found = copy.deepcopy(self.get())
        change(found["spec"])
        answer = self.client.put(f"{WHERE}/{self.app}", json=found, params={"fieldManager": manager})
        assert answer.status_code == 200, answer.text

    def split(self) -> dict[str, int]:
        """Predictor -> percent."""
        spec = self.get()["spec"]
        canary = {entry["predictor"]["name"]: entry["trafficPercent"] for entry in spec.get("canary") or ()}
        return {spec["predictor"].get("name", ""): 100 - sum(canary.values()), **canary}
