"""Who reaches whom through the NetworkPolicies, and under which name."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.chart.rendering import CHART, NAMESPACE, PROFILES, Manifest, of_kind, pods, rendered

Labels = Mapping[str, str]
RAY = [profile for profile in PROFILES if profile != "kserve"]
INCREMENTAL = "gpu-production"


def selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    rules = selector.get("matchExpressions", ())
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        (labels.get(rule["key"]) in rule["values"]) == (rule["operator"] == "In") for rule in rules
    )


def is_peer(peer: Mapping[str, Any], labels: Labels, namespace: str) -> bool:
    if "namespaceSelector" in peer:
        there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        there = namespace == NAMESPACE and "podSelector" in peer
    return there and selects(peer.get("podSelector", {}), labels)


def allows(rule: Mapping[str, Any], side: str, labels: Labels, namespace: str, port: int) -> bool:
    """As an API server reads it: no peers are all peers, no ports all ports."""
    peers, ports = rule.get(side), rule.get("ports")
    return (not peers or any(is_peer(peer, labels, namespace) for peer in peers)) and (
        not ports or any(one["port"] == port for one in ports)
    )


def lets_in(manifests: list[Manifest], who: Labels, namespace: str, whom: Labels, port: int) -> bool:
    policies = [one["spec"] for one in of_kind(manifests, "NetworkPolicy") if selects(one["spec"]["podSelector"], whom)]
    rules = [rule for policy in policies for rule in policy.get("ingress", ())]
    return any(allows(rule, "from", who, namespace, port) for rule in rules)


def lets_out(manifests: list[Manifest], who: Labels, whom: Labels, port: int) -> bool:
    policies = [one["spec"] for one in of_kind(manifests, "NetworkPolicy") if selects(one["spec"]["podSelector"], who)]
    rules = [rule for policy in policies for rule in policy.get("egress", ())]
    return any(allows(rule, "to", whom, NAMESPACE, port) for rule in rules)


def labels_of(manifests: list[Manifest], component: str) -> Labels:
    return next(pod.labels for pod in pods(manifests) if pod.labels["app.kubernetes.io/component"] == component)


@pytest.mark.parametrize("who", ["controller", "doctor"])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_doctor_reaches_what_it_asks_from_both_pods_that_people_start_it_in(profile: str, who: str) -> None:
    manifests = rendered(profile)
    there = {pod.labels["app.kubernetes.io/component"] for pod in pods(manifests)}
    asked = {"ray-worker": 8000, "predictor": 8080, "mlflow": 5000, "postgresql": 5432, "chroma": 8000}
    reached = {component: port for component, port in asked.items() if component in there}
    assert reached.keys() & {"ray-worker", "predictor"}
    for component, port in reached.items():
        ours, theirs = labels_of(manifests, who), labels_of(manifests, component)
        assert lets_out(manifests, ours, theirs, port), f"{who} -> {component}"
        assert lets_in(manifests, ours, NAMESPACE, theirs, port), f"{who} -> {component}"


@pytest.mark.parametrize("profile", RAY)
def test_the_address_of_the_endpoint_is_a_service_that_somebody_makes(profile: str) -> None:
    """KubeRay makes the one that the RayService describes, but not with incremental upgrades."""
    manifests = rendered(profile)
    (service,) = of_kind(manifests, "RayService")
    incremental = service["spec"]["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    assert incremental == (profile == INCREMENTAL)
    if incremental:
        assert "serveService" not in service["spec"]
        made = of_kind(manifests, "Service")
    else:
        made = [service["spec"]["serveService"]]
    ports = {one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]} for one in made}
    for pod in pods(manifests):
        if pod.labels["app.kubernetes.io/component"] not in ("controller", "doctor"):
            continue
        settled = {one["name"]: one.get("value", "") for one in pod.containers[0]["env"]}
        for url in (settled["PALATE_URL"], settled.get("PALATE_WEBHOOK_URL", settled["PALATE_URL"])):
            address = urlsplit(url)
            name, namespace, domain = str(address.hostname).split(".")
            assert (namespace, domain) == (NAMESPACE, "svc")
            assert address.port in ports[name], pod


def test_with_incremental_upgrades_the_endpoint_has_a_service_on_all_pods_that_serve() -> None:
    manifests = rendered(INCREMENTAL)
    (service,) = of_kind(manifests, "Service", "palate-endpoint")
    selected = {pod.where for pod in pods(manifests) if service["spec"]["selector"].items() <= pod.labels.items()}
    groups = [
        pod.where for pod in pods(manifests) if "workerGroupSpecs" in pod.where and pod.owner.startswith("RayService")
    ]
    assert selected == set(groups)


def test_kuberays_gateway_reaches_the_endpoint_and_a_stranger_does_not() -> None:
    """KubeRay calls it as the RayService with `-gateway`, and Istio runs its pods in that namespace, so labelled."""
    manifests = rendered(INCREMENTAL)
    (service,) = of_kind(manifests, "RayService")
    gateway = {"gateway.networking.k8s.io/gateway-name": f"{service['metadata']['name']}-gateway"}
    worker = labels_of(manifests, "ray-worker")
    assert lets_in(manifests, gateway, NAMESPACE, worker, 8000)
    assert not lets_in(manifests, gateway, "elsewhere", worker, 8000)
    assert not lets_in(manifests, gateway, NAMESPACE, worker, 9102)
    assert not lets_in(manifests, {"app": "stranger"}, NAMESPACE, worker, 8000)
    assert not lets_in(rendered("cpu-production"), gateway, NAMESPACE, worker, 8000)


def test_the_api_server_of_a_profile_is_no_cluster_ip() -> None:
    """Plugins judge after the Service's address was replaced by that of a node; those of Services are in 10.96.0.0/12
    unless said otherwise."""
    for profile in PROFILES:
        values = yaml.safe_load((CHART / "profiles" / f"{profile}.yaml").read_text())
        for cidr in values.get("networkPolicy", {}).get("apiServerCidrs", ()):
            assert not ip_network(cidr).overlaps(ip_network("10.96.0.0/12")), profile
