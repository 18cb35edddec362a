"""What the chart renders for KServe is what the controller needs to put canaries beside it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.kserve_traffic import mapping
from registry.kserve_traffic.mapping import RELEASE, Wanted
from tests.chart.rendering import CHART, NAMESPACE, Manifest, of_kind, predictor_pod, rendered, template
from tests.chart.schemas import fault
from tests.kserve_world import admit

APPS = ("packages", "wine-orders")


@pytest.mark.parametrize("app", APPS)
def test_a_canary_beside_it_is_one_that_kserve_takes(app: str) -> None:
    """From the chart's predictor, by the controller's writes, to a canary with 25 percent."""
    (service,) = of_kind(rendered("kserve"), "InferenceService", app)
    admit(service)
    want = Wanted(3, {7: 25}, 1)
    for _ in range(5):
        changed = mapping.towards(service, want, 1)
        if changed is None:
            break
        admit(changed)
        assert fault(changed) is None
        service = {**changed, "status": status_of(changed)}
    assert mapping.followed(service, want)
    stable, canary = service["spec"]["predictor"], service["spec"]["canary"][0]["predictor"]
    assert (stable["labels"][RELEASE], canary["labels"][RELEASE]) == ("3", "7")
    assert canary["model"] == {**stable["model"], "name": "kserve-container"}


def status_of(service: dict[str, Any]) -> dict[str, Any]:
    """As KServe's controller leaves it once all pods are ready."""
    entries = service["spec"].get("canary", ())
    statuses = [{"name": e["predictor"]["name"], "ready": True, "trafficPercent": e["trafficPercent"]} for e in entries]
    return {"conditions": [{"type": "PredictorReady", "status": "True"}], "canaryStatuses": statuses}


@pytest.mark.parametrize("app", APPS)
def test_its_pods_serve_the_app_and_the_release_of_their_label(app: str) -> None:
    manifests = rendered("kserve")
    (service,) = of_kind(manifests, "InferenceService", app)
    (container,) = predictor_pod(service, manifests)["containers"]
    assert container["command"][:2] == ["palate", "kserve-server"]
    assert container["args"] == ["--app", app]
    sources = [variable.get("valueFrom") for variable in container["env"] if variable["name"] == "PALATE_RELEASE"]
    assert sources == [{"fieldRef": {"fieldPath": f"metadata.labels['{RELEASE}']"}}]


def test_there_is_a_runtime_for_each_image_that_an_app_wants(tmp_path: Path) -> None:
    def runtimes(apps: dict[str, Any]) -> dict[str, str]:
        extra = tmp_path / "extra.yaml"
        extra.write_text(yaml.safe_dump({"apps": apps}))
        done = template("kserve", "--values", str(extra))
        assert done.returncode == 0, done.stderr
        manifests: list[Manifest] = [one for one in yaml.safe_load_all(done.stdout) if one]
        found = {one["metadata"]["name"]: one for one in of_kind(manifests, "ServingRuntime")}
        used = [one["spec"]["predictor"]["model"]["runtime"] for one in of_kind(manifests, "InferenceService")]
        assert found.keys() == set(used)
        assert not [said for one in found.values() if (said := fault(one))]
        return {name: one["spec"]["containers"][0]["image"].rsplit(":")[-1] for name, one in found.items()}

    tag = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    suffix = yaml.safe_load((CHART / "values.yaml").read_text())["image"]["gpuSuffix"]
    assert runtimes({}) == {"palate": tag}
    assert runtimes({"packages": {"gpu": True}}) == {"palate": tag, "palate-gpu": tag + suffix}
    assert runtimes({app: {"gpu": True} for app in APPS}) == {"palate-gpu": tag + suffix}


def test_a_predictor_without_pods_is_refused(tmp_path: Path) -> None:
    """No canary of it could become ready."""
    extra = tmp_path / "extra.yaml"
    extra.write_text(json.dumps({"apps": {"packages": {"minReplicas": 0}}}))
    done = template("kserve", "--values", str(extra))
    assert done.returncode != 0
    assert re.search(r"minReplicas.*minimum", done.stderr, re.DOTALL)


@pytest.mark.parametrize("away", ["", *APPS])
def test_the_doctor_asks_the_endpoint_of_each_app(away: str, tmp_path: Path) -> None:
    """By its command in a real shell; `palate` only says what it was asked, and fails for the app that is away."""
    manifests = rendered("kserve")
    (pod,) = of_kind(manifests, "Pod")
    palate = tmp_path / "palate"
    palate.write_text(f'#!/bin/bash\necho "$PALATE_APPS $PALATE_URL $*"\n[[ $PALATE_APPS != "{away}" ]]\n')
    palate.chmod(0o755)
    done = subprocess.run(
        pod["spec"]["containers"][0]["command"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert done.returncode == (1 if away else 0)
    services = {
        one["spec"]["selector"]["serving.kserve.io/inferenceservice"]: one
        for one in of_kind(manifests, "Service")
        if one["metadata"]["labels"]["app.kubernetes.io/component"] == "predictor"
    }
    addresses = {
        app: f"http://{one['metadata']['name']}.{NAMESPACE}.svc:{one['spec']['ports'][0]['port']}"
        for app, one in services.items()
    }
    assert addresses.keys() == set(APPS)
    asked = [f"{app} {addresses[app]} doctor --in-cluster --json" for app in APPS]
    assert done.stdout.splitlines() == asked


def test_the_service_of_an_app_has_a_name_that_kubernetes_takes(tmp_path: Path) -> None:
    """Release, chart and app have up to 95 letters, a Service's name 63; apps that begin alike are kept apart."""
    extra = tmp_path / "extra.yaml"
    long = [f"{'many-letters-' * 3}{end}" for end in ("one", "two")]
    extra.write_text(yaml.safe_dump({"apps": {app: {} for app in long}}))
    done = template("kserve", "--values", str(extra), release="a-release-whose-name-is-not-short")
    assert done.returncode == 0, done.stderr
    names = [one["metadata"]["name"] for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Service"]
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for name in names)
