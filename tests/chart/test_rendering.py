"""Every profile renders, renders the same twice, and renders what an API server would take."""

from __future__ import annotations

import pytest
import yaml

from tests.chart.rendering import (
    CHART,
    NAMESPACE,
    PROFILES,
    helm,
    name_of,
    of_kind,
    pods,
    rendered,
    rendered_text,
    template,
)
from tests.chart.schemas import fault

pytestmark = pytest.mark.parametrize("profile", PROFILES)


def test_lint_finds_nothing(profile: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(CHART / "profiles" / f"{profile}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_object_is_one_that_an_api_server_takes(profile: str) -> None:
    wrong = {name_of(one): said for one in rendered(profile) if (said := fault(one)) is not None}
    assert not wrong


def test_rendered_twice_it_is_the_same(profile: str) -> None:
    assert template(profile).stdout == rendered_text(profile)


def test_every_object_stands_in_the_namespace_under_a_name_of_its_own(profile: str) -> None:
    manifests = rendered(profile)
    assert {one["metadata"]["namespace"] for one in manifests} == {NAMESPACE}
    names = [(one["apiVersion"], name_of(one)) for one in manifests]
    assert len(names) == len(set(names))
    assert all(len(one["metadata"]["name"]) <= 63 for one in manifests)


def test_a_release_of_another_name_shares_no_object_and_selects_no_pod_of_this_one(profile: str) -> None:
    other = template(profile, release="second")
    assert other.returncode == 0, other.stderr
    manifests = [one for one in yaml.safe_load_all(other.stdout) if one]
    # The Secret, and InferenceServices, which are called as their apps are, may be there once in a namespace
    shared = {name_of(one) for one in manifests} & {name_of(one) for one in rendered(profile)}
    assert all(name.startswith(("ExternalSecret/", "InferenceService/")) for name in shared)
    assert {pod.labels["app.kubernetes.io/instance"] for pod in pods(manifests)} == {"second"}


def test_what_selects_pods_finds_some(profile: str) -> None:
    manifests = rendered(profile)
    labels = [pod.labels for pod in pods(manifests)]

    def found(selector: dict[str, object]) -> bool:
        wanted: dict[str, str] = selector.get("matchLabels", {})  # type: ignore[assignment]
        rules: list[dict[str, object]] = selector.get("matchExpressions", [])  # type: ignore[assignment]
        return any(
            wanted.items() <= have.items()
            and all((have.get(str(r["key"])) in r["values"]) == (r["operator"] == "In") for r in rules)  # type: ignore[operator]
            for have in labels
        )

    ours = [
        *((one, {"matchLabels": one["spec"]["selector"]}) for one in of_kind(manifests, "Service")),
        *((one, one["spec"]["podSelector"]) for one in of_kind(manifests, "NetworkPolicy")),
        *((one, one["spec"]["selector"]) for one in of_kind(manifests, "PodMonitor")),
        *((one, one["spec"]["selector"]) for one in of_kind(manifests, "PodDisruptionBudget")),
    ]
    kserve = "serving.kserve.io/inferenceservice"  # KServe's own label
    missed = [name_of(one) for one, selector in ours if kserve not in str(selector) and not found(selector)]
    assert not missed


def test_the_schema_comes_before_what_uses_it(profile: str) -> None:
    """As a hook, so that an upgrade stops where it fails. A bundled database starts with the rest: no hook could wait
    for it, and one that runs afterwards would never run under --wait."""
    manifests = rendered(profile)
    (job,) = [one for one in of_kind(manifests, "Job") if "migrate" in one["metadata"]["name"]]
    bundled = [one for one in of_kind(manifests, "StatefulSet") if "postgresql" in one["metadata"]["name"]]
    hooks = job["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    assert hooks == ("" if bundled else "pre-install,pre-upgrade")
    account = job["spec"]["template"]["spec"]["serviceAccountName"]
    (found,) = of_kind(manifests, "ServiceAccount", account)
    assert found["metadata"].get("annotations", {}).get("helm.sh/hook", "") == hooks


@pytest.mark.parametrize("other", ["config.max_queue=512", "image.tag=0.0.9", "postgresql.port=6543", "labels.team=x"])
def test_a_job_of_another_pod_template_has_another_name(profile: str, other: str) -> None:
    """An API server refuses to change the template. Helm deletes a hook Job before it makes the next."""
    done = template(profile, "--set", other)
    assert done.returncode == 0, done.stderr
    was = {name_of(one): one for one in of_kind(rendered(profile), "Job")}
    now = {name_of(one): one for one in of_kind([one for one in yaml.safe_load_all(done.stdout) if one], "Job")}
    for name in was.keys() & now.keys():
        if "helm.sh/hook" not in was[name]["metadata"].get("annotations", {}):
            assert was[name]["spec"]["template"] == now[name]["spec"]["template"], name
