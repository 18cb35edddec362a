"""What a platform engineer's admission policies would ask of every pod: pod security `restricted`, and more."""

from __future__ import annotations

import re

import pytest

from tests.chart.rendering import PROFILES, Pod, name_of, of_kind, pods, rendered

pytestmark = pytest.mark.parametrize("profile", PROFILES)

CALLS_KUBERNETES = {"ray-head": "Ray's autoscaler", "controller": "the KServe adapter"}


def faults_of(pod: Pod) -> list[str]:
    """By the policy `restricted` of the Pod Security Standards, and the rules of this project."""
    spec = pod.spec
    security = spec.get("securityContext", {})
    wrong = [f"{flag} is set" for flag in ("hostNetwork", "hostPID", "hostIPC") if spec.get(flag)]
    if not (security.get("runAsNonRoot") and security.get("runAsUser", 0) > 0):
        wrong.append("may run as root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        wrong.append("no seccomp profile")
    if spec.get("enableServiceLinks") is not False:
        wrong.append("other services' addresses are in its environment")
    kinds = {key for volume in spec.get("volumes", ()) for key in volume if key != "name"}
    if extra := kinds - {"emptyDir", "configMap", "projected", "persistentVolumeClaim", "secret"}:
        wrong.append(f"volumes of kinds {sorted(extra)}")
    named = {volume["name"] for volume in spec.get("volumes", ())}
    for container in pod.containers:
        wrong += [f"{container['name']}: {fault}" for fault in _container_faults(container)]
        if missing := {mount["name"] for mount in container.get("volumeMounts", ())} - named - {"data"}:
            wrong.append(f"{container['name']}: mounts {sorted(missing)} that the pod does not have")
    return wrong


def _container_faults(container: dict[str, object]) -> list[str]:
    security: dict[str, object] = container.get("securityContext", {})  # type: ignore[assignment]
    resources: dict[str, dict[str, str]] = container.get("resources", {})  # type: ignore[assignment]
    wrong = []
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        wrong.append("may gain privileges")
    if security.get("capabilities") != {"drop": ["ALL"]}:
        wrong.append("keeps capabilities")
    if security.get("readOnlyRootFilesystem") is not True:
        wrong.append("writes into its image")
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
        wrong.append("says not what it needs")
    if any(port.get("hostPort") for port in container.get("ports", ())):  # type: ignore[attr-defined]
        wrong.append("takes a port of its node")
    if str(container["image"]).endswith(":latest") or not re.search(r":[^/]+$|@sha256:", str(container["image"])):
        wrong.append("its image is not pinned")
    return wrong


def test_every_pod_is_restricted(profile: str) -> None:
    found = pods(rendered(profile))
    assert len(found) >= 4
    wrong = {str(pod): faults for pod in found if (faults := faults_of(pod))}
    assert not wrong


def test_the_autoscaler_that_kuberay_adds_is_restricted_too(profile: str) -> None:
    for service in of_kind(rendered(profile), "RayService"):
        cluster = service["spec"]["rayClusterConfig"]
        if cluster["enableInTreeAutoscaling"]:
            container = {**cluster["autoscalerOptions"], "name": "autoscaler", "image": "palate:1"}
            assert not _container_faults(container)


def test_only_who_calls_kubernetes_holds_a_token(profile: str) -> None:
    manifests = rendered(profile)
    for pod in pods(manifests):
        if pod.spec["automountServiceAccountToken"]:
            assert pod.labels["app.kubernetes.io/component"] in CALLS_KUBERNETES, str(pod)
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    assert {pod.spec["serviceAccountName"] for pod in pods(manifests)} <= accounts
    for account in of_kind(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_a_role_names_what_it_may_touch_and_may_not_read_secrets(profile: str) -> None:
    assert not of_kind(rendered(profile), "ClusterRole")
    for role in of_kind(rendered(profile), "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]
            assert rule.get("resourceNames") or set(rule["verbs"]) <= {"list", "watch"}


def test_every_pod_is_denied_by_default_in_both_directions(profile: str) -> None:
    denied = next(one for one in of_kind(rendered(profile), "NetworkPolicy") if name_of(one).endswith("-deny"))
    assert denied["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in denied["spec"]
    assert "egress" not in denied["spec"]
    wanted = denied["spec"]["podSelector"]["matchLabels"]
    assert all(wanted.items() <= pod.labels.items() for pod in pods(rendered(profile)))


def test_no_policy_opens_a_port_to_everybody(profile: str) -> None:
    for policy in of_kind(rendered(profile), "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            assert rule.get("from"), name_of(policy)
            assert all(peer for peer in rule["from"]), name_of(policy)


def test_no_value_of_a_secret_stands_in_a_manifest(profile: str) -> None:
    manifests = rendered(profile)
    assert not of_kind(manifests, "Secret")
    for pod in pods(manifests):
        for container in pod.containers:
            for variable in container.get("env", ()):
                if re.search(r"(PASSWORD|SECRET|TOKEN|_KEY|DATABASE_URL|STORE_URI)(_|$)", variable["name"]):
                    assert "secretKeyRef" in variable.get("valueFrom", {}), f"{pod}: {variable['name']}"


def test_ray_asks_for_its_token(profile: str) -> None:
    manifests = rendered(profile)
    clusters = [one["spec"]["rayClusterConfig"] for one in of_kind(manifests, "RayService")]
    clusters += [one["spec"]["rayClusterSpec"] for one in of_kind(manifests, "RayJob")]
    clusters += [one["spec"]["jobTemplate"]["rayClusterSpec"] for one in of_kind(manifests, "RayCronJob")]
    assert all(cluster["authOptions"]["mode"] == "token" for cluster in clusters)
