"""What an InferenceService should be for a Traffic, and what one says. Pure functions over plain JSON.

A version N is a predictor named `vN`. KServe names its Deployment after it, so a predictor that moves between
`spec.canary` and `spec.predictor` keeps its pods. Which release a predictor serves stands in its label RELEASE, which
its pods read as PALATE_RELEASE. Nothing else of the predictor is touched: it is the chart's, or the operator's.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.plan import RolloutPlan
from registry.traffic import ArmPhase, Traffic, TrialArm

GROUP, API_VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
MODE, STANDARD = "serving.kserve.io/deploymentMode", "Standard"
RELEASE = "palate.dev/release"
APPLIED = "palate.dev/applied"
"""Annotation: the split that the controller wrote last, and for which generation. Written with the split, in one PUT:
where both differ, somebody else wrote the split."""

NOT_ON_A_CANARY = ("maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "workerSpec")
"""KServe refuses these on a canary, whose number of pods is fixed."""

CONTAINER = "kserve-container"
"""The schema of a canary wants the container's name; on `spec.predictor` KServe's webhook refuses it."""

Service = Mapping[str, Any]


def collection(namespace: str) -> str:
    """The path of a namespace's InferenceServices."""
    return f"/apis/{GROUP}/{API_VERSION}/namespaces/{namespace}/{PLURAL}"


@dataclass(frozen=True, slots=True)
class Split:
    """Who gets the requests. `predictor` is the name of `spec.predictor`, "" for none; it gets what `canary` (name ->
    percent) leaves."""

    predictor: str
    canary: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Beside `stable`, which gets the rest, each version that shall run, and its percent."""

    stable: int
    others: Mapping[int, int]
    replicas: int


def name_of(version: int) -> str:
    return f"v{version}"


def version_of(name: str) -> int | None:
    """None for a name that is not one of ours."""
    found = re.fullmatch(r"v([1-9][0-9]{0,17})", name)  # longer is no number that a registry counts to
    return None if found is None else int(found[1])


def obstacle(traffic: Traffic, plan: RolloutPlan | None) -> str:
    """Why KServe cannot follow this traffic, or the plan of its rollout to the end; "" when it can."""
    percents = [traffic.canary_percent, traffic.control_percent]
    if plan is not None:
        percents += [*plan.steps_percent, plan.bake_percent]
    if fractions := sorted({p for p in percents if p != int(p)}):
        return f"KServe splits by whole percents, and the rollout has {fractions[0]:g}: change rollout.steps_percent"
    if traffic.shadow_percent or (plan is not None and plan.shadow_percent):
        return "KServe mirrors no requests: set rollout.shadow_percent to 0"
    return ""


def wanted(traffic: Traffic) -> Wanted:
    """Arms that run what is stable are the stable predictor's own requests: they need no predictor."""
    others = {version: 0 for version in traffic.warm if version != traffic.stable}
    for version, percent in ((traffic.canary, traffic.canary_percent), (traffic.control, traffic.control_percent)):
        if version is not None and version != traffic.stable:
            others[version] = int(percent)
    return Wanted(traffic.stable, others, traffic.replicas)


# --- what an InferenceService says ---


def split_of(service: Service) -> Split:
    spec = service["spec"]
    canary = {entry["predictor"]["name"]: int(entry["trafficPercent"]) for entry in spec.get("canary") or ()}
    return Split(spec["predictor"].get("name", ""), canary)


def applied_of(service: Service) -> tuple[Split, int] | None:
    """The split that the controller wrote last and its generation; None where there is none that can be read."""
    text = (service["metadata"].get("annotations") or {}).get(APPLIED)
    try:
        said = json.loads(text or "null")
        return Split(said["predictor"], {str(n): int(p) for n, p in said["canary"].items()}), int(said["generation"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def edited(service: Service) -> str:
    """How somebody else changed the split since the controller wrote it, "" where nobody did. Predictors with names of
    their own beside ours are not our concern."""
    applied = applied_of(service)
    if applied is None:
        return ""
    before, now = applied[0], split_of(service)
    if before.predictor != now.predictor:
        return f"spec.predictor.name was changed from {before.predictor!r} to {now.predictor!r}"
    for name in sorted(_ours(before) | _ours(now)):
        was, found = before.canary.get(name), now.canary.get(name)
        if was != found:
            gone, added = f"canary {name} was removed", f"canary {name} was added with {found} percent"
            return gone if found is None else added if was is None else f"canary {name} was set from {was} to {found} %"
    return ""


def added(service: Service) -> list[int]:
    """The versions that somebody else gave a canary since the controller wrote the split."""
    applied = applied_of(service)
    names = set() if applied is None else _ours(split_of(service)) - _ours(applied[0])
    return sorted(version for name in names if (version := version_of(name)) is not None)


def editor_of(service: Service) -> str:
    """Who wrote the spec last, as the API server recorded it."""
    records = service["metadata"].get("managedFields") or ()
    spec = [record for record in records if "f:spec" in (record.get("fieldsV1") or {})]
    newest: Mapping[str, Any] = max(spec, key=lambda record: str(record.get("time", "")), default={})
    name = "".join(letter for letter in str(newest.get("manager", "")) if letter.isprintable())[:60]
    return f"{name or 'somebody'} (Kubernetes)"


def condition(service: Service, kind: str) -> Mapping[str, Any]:
    conditions = (service.get("status") or {}).get("conditions") or ()
    return next((found for found in conditions if found.get("type") == kind), {})


def is_current(service: Service) -> bool:
    """Whether the status speaks of these canaries, and not of those before the last write. (`observedGeneration` does
    not say: it is that of the predictor's Deployment.)"""
    return {found["name"] for found in _statuses(service)} == set(split_of(service).canary)


def ready(service: Service, version: int) -> bool:
    """Whether the predictor of this version has a pod that answers."""
    name = name_of(version)
    if split_of(service).predictor == name:
        return bool(condition(service, "PredictorReady").get("status") == "True")
    return any(found["name"] == name and found["ready"] for found in _statuses(service))


def trouble(service: Service, version: int) -> str:
    """Why the predictor of this version will not become ready by itself, "" where nothing says so."""
    name = name_of(version)
    status = service.get("status") or {}
    primary = split_of(service).predictor == name
    found = [status] if primary else [entry for entry in _statuses(service) if entry["name"] == name]
    for entry in found:
        model = entry.get("modelStatus") or {}
        if model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
            failure = model.get("lastFailureInfo") or {}
            return (
                f"{failure.get('reason', model['transitionStatus'])}: {failure.get('message', 'KServe says no more')}"
            )
    return ""


def followed(service: Service, want: Wanted) -> bool:
    """Whether KServe routes as wanted. Weights that it took on stand in its status; a canary that is not ready has none
    of the traffic, whatever it is to have."""
    split = split_of(service)
    routed = {found["name"]: int(found["trafficPercent"]) for found in _statuses(service)}
    ours = {name_of(version): percent for version, percent in want.others.items()}
    if not is_current(service):
        return False
    return split.predictor == name_of(want.stable) and all(
        split.canary.get(name) == percent == routed.get(name) for name, percent in ours.items()
    )


# --- what it should be ---


def towards(service: Service, want: Wanted, generation: int) -> dict[str, Any] | None:
    """The object one write nearer to what is wanted; None where there is nothing to write now.

    A version becomes the predictor only once it has a ready pod: until then it is brought up as a canary without
    requests, and nothing else gets other requests than before.
    """
    live = split_of(service)
    target = name_of(want.stable)
    entries = {name_of(version): percent for version, percent in want.others.items()}
    primary = target
    if live.predictor != target and not (target in live.canary and ready(service, want.stable)):
        primary = live.predictor
        entries = {name: live.canary.get(name, 0) for name in (*entries, target) if name != primary}
    foreign = {name: percent for name, percent in live.canary.items() if version_of(name) is None}
    changed: dict[str, Any] = copy.deepcopy({key: value for key, value in service.items() if key != "status"})
    _set_predictor(changed["spec"]["predictor"], primary)
    kept = {entry["predictor"]["name"]: entry for entry in changed["spec"].pop("canary", None) or ()}
    canary = [
        _entry(changed["spec"]["predictor"], name, percent, want.replicas) for name, percent in sorted(entries.items())
    ]
    if canary or foreign:
        changed["spec"]["canary"] = [*canary, *(kept[name] for name in foreign)]
    said = {"predictor": primary, "canary": entries, "generation": generation}
    annotations = changed["metadata"].setdefault("annotations", {})
    before = applied_of(service)
    if before is None or before[0] != Split(primary, entries) or before[1] > generation:
        annotations[APPLIED] = json.dumps(said, sort_keys=True)
    annotations.setdefault(MODE, STANDARD)  # canaries exist in this mode alone
    same = changed["spec"] == service["spec"] and annotations == (service["metadata"].get("annotations") or {})
    return None if same else changed


def acknowledged(service: Service, generation: int) -> dict[str, Any]:
    """The object with the split as somebody else left it taken as known."""
    changed: dict[str, Any] = copy.deepcopy({key: value for key, value in service.items() if key != "status"})
    split = split_of(service)
    ours = {name: percent for name, percent in split.canary.items() if version_of(name) is not None}
    said = {"predictor": split.predictor, "canary": ours, "generation": generation}
    changed["metadata"].setdefault("annotations", {})[APPLIED] = json.dumps(said, sort_keys=True)
    return changed


def phase_of(service: Service, version: int, before: ArmPhase | None) -> tuple[ArmPhase, str]:
    """The phase of the arm that runs this version, and why. What was ready and is not any more has crashed."""
    if ready(service, version):
        return "ready", ""
    if before == "ready":
        return "failed", f"predictor {name_of(version)} has no ready pod any more"
    reason = trouble(service, version)
    return ("failed", reason) if reason else ("deploying", "")


def arms_of(traffic: Traffic) -> Sequence[tuple[TrialArm, int]]:
    """(arm, version) of each arm that shall run."""
    arms: tuple[TrialArm, ...] = ("canary", "control")
    return [(arm, version) for arm in arms if traffic.rollout and (version := traffic.version_of(arm)) is not None]


def _ours(split: Split) -> set[str]:
    return {name for name in split.canary if version_of(name) is not None}


def _statuses(service: Service) -> Sequence[Mapping[str, Any]]:
    return (service.get("status") or {}).get("canaryStatuses") or ()


def _set_predictor(predictor: dict[str, Any], name: str) -> None:
    if not name:  # as the chart made it: it serves what is `stable` when its pods start
        return
    predictor["name"] = name
    version = version_of(name)
    if version is not None:
        predictor.setdefault("labels", {})[RELEASE] = str(version)


def _entry(predictor: Mapping[str, Any], name: str, percent: int, replicas: int) -> dict[str, Any]:
    """The canary entry of a version: all that `spec.predictor` has, under its own name and label.

    Its pods are counted by hand: by itself KServe gives a canary without requests none, and it could not become ready.
    """
    entry = {key: copy.deepcopy(value) for key, value in predictor.items() if key not in NOT_ON_A_CANARY}
    if "model" in entry:
        entry["model"].setdefault("name", CONTAINER)
    most = int(predictor.get("minReplicas") or 1)  # KServe allows no more
    entry["minReplicas"] = min(most, max(replicas, math.ceil(most * percent / 100)))
    _set_predictor(entry, name)
    return {"predictor": entry, "trafficPercent": percent}
