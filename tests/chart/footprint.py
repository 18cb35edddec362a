"""What a profile makes run: its pods, how many, and what they ask for. The table in the chart's README is this."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.chart.rendering import Manifest, predictor_pod

UNITS = {"Mi": 1 / 1024, "Gi": 1.0}


class Row(NamedTuple):
    """`pods`: a number, or two with a dash between. CPUs and GiB are of one pod."""

    what: str
    kind: str
    pods: str
    cpus: float
    memory_gib: float
    gpus: int


def rows(manifests: list[Manifest]) -> Iterator[Row]:
    """In the order in which the manifests have them."""
    for manifest in manifests:
        kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            yield row(name, kind, str(spec["replicas"]), spec["template"]["spec"])
        elif kind == "Job":
            yield row(re.sub(r"-[0-9a-f]{8}$", "", name), "Job, once", "1", spec["template"]["spec"])
        elif kind == "CronJob":
            yield row(name, "CronJob", "1", spec["jobTemplate"]["spec"]["template"]["spec"])
        elif kind == "RayService":
            yield from cluster(name, "RayService", spec["rayClusterConfig"])
        elif kind in ("RayJob", "RayCronJob"):
            yield from cluster(name, kind, spec.get("jobTemplate", spec)["rayClusterSpec"])
        elif kind == "InferenceService":
            predictor = spec["predictor"]
            pods = f"{predictor['minReplicas']}-{predictor['maxReplicas']}"
            yield row(name, kind, pods, predictor_pod(manifest, manifests))


def cluster(name: str, kind: str, spec: dict[str, Any]) -> Iterator[Row]:
    head = dict(spec["headGroupSpec"]["template"]["spec"])
    if spec.get("enableInTreeAutoscaling"):
        head["containers"] = [*head["containers"], spec["autoscalerOptions"]]
    yield row(f"{name}, head", kind, "1", head)
    for group in spec["workerGroupSpecs"]:
        least, most = group["minReplicas"], group["maxReplicas"]
        pods = str(least) if least == most else f"{least}-{most}"
        yield row(f"{name}, {group['groupName']}", kind, pods, group["template"]["spec"])


def row(what: str, kind: str, pods: str, spec: dict[str, Any]) -> Row:
    requests = [container["resources"]["requests"] for container in spec["containers"]]
    limits = [container["resources"].get("limits", {}) for container in spec["containers"]]
    cpus = sum(cpu(request["cpu"]) for request in requests)
    memory = sum(float(request["memory"][:-2]) * UNITS[request["memory"][-2:]] for request in requests)
    gpus = sum(int(limit.get("nvidia.com/gpu", 0)) for limit in limits)
    return Row(what, kind, pods, round(cpus, 2), round(memory, 1), gpus)


def cpu(text: str) -> float:
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def markdown(manifests: list[Manifest]) -> list[str]:
    """The rows of a table: what, kind, pods, CPUs, GiB, GPUs."""
    return [
        f"| `{r.what}` | {r.kind} | {r.pods} | {r.cpus:g} | {r.memory_gib:g} | {r.gpus or ''} |"
        for r in rows(manifests)
    ]
