"""What an InferenceService is made for a Traffic, write by write: pure functions over plain JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.kserve_traffic import mapping
from registry.kserve_traffic.mapping import APPLIED, RELEASE, Split, Wanted
from registry.plan import RolloutPlan
from registry.traffic import Traffic
from tests.kserve_world import admit, service

Object = dict[str, Any]


def trial(percent: float = 0.0, **changes: Any) -> Traffic:
    return Traffic(
        "wines", 5, 3, canary=7, control=3, canary_percent=percent, control_percent=percent, rollout=2, **changes
    )


def bake(percent: float = 5.0) -> Traffic:
    return Traffic(
        "wines", 9, 7, canary=7, control=3, canary_percent=percent, control_percent=percent, warm=(3,), rollout=2
    )


def with_status(found: Object, ready: bool = True) -> Object:
    """As KServe leaves it, all pods ready or none."""
    canaries = found["spec"].get("canary") or ()
    statuses = [
        {"name": e["predictor"]["name"], "ready": ready, "trafficPercent": e["trafficPercent"]} for e in canaries
    ]
    condition = {"type": "PredictorReady", "status": "True" if ready else "False"}
    return {**found, "status": {"conditions": [condition], "canaryStatuses": statuses}}


def settled(found: Object, traffic: Traffic) -> tuple[Object, int]:
    """After as many writes as it takes, KServe following each; and how many."""
    found = with_status(found)
    for writes in range(10):
        changed = mapping.towards(found, mapping.wanted(traffic), traffic.generation)
        if changed is None:
            return found, writes
        admit(changed)
        found = with_status(changed)
    raise AssertionError("it never rests")


def names(found: Object) -> list[tuple[str, int, str]]:
    """(predictor, percent, release) of each, the stable one first."""
    split = mapping.split_of(found)
    predictors = [found["spec"]["predictor"], *(e["predictor"] for e in found["spec"].get("canary") or ())]
    percents = [100 - sum(split.canary.values()), *split.canary.values()]
    return [
        (p.get("name", ""), percent, (p.get("labels") or {}).get(RELEASE, ""))
        for p, percent in zip(predictors, percents, strict=True)
    ]


def test_the_arm_that_runs_stable_needs_no_predictor() -> None:
    assert mapping.wanted(trial(5)) == Wanted(3, {7: 5}, 1)
    assert mapping.wanted(bake(5)) == Wanted(7, {3: 5}, 1)
    assert mapping.wanted(Traffic("wines", 1, 3, warm=(2,))) == Wanted(3, {2: 0}, 1)


def test_stable_is_brought_up_before_it_is_the_predictor() -> None:
    """The chart's predictor has no name: requests stay with it until stable's own has a ready pod."""
    fresh = with_status(service("wines"))
    first = mapping.towards(fresh, Wanted(3, {}, 1), 1)
    assert first is not None
    assert names(first) == [("", 100, ""), ("v3", 0, "3")]
    waiting = with_status(first, ready=False)
    assert mapping.towards(waiting, Wanted(3, {}, 1), 1) is None
    second = mapping.towards(with_status(first), Wanted(3, {}, 1), 1)
    assert second is not None
    assert names(second) == [("v3", 100, "3")]


def test_a_rollout_from_dark_to_promoted_to_baked() -> None:
    found, _ = settled(service("wines"), Traffic("wines", 1, 3))
    found, writes = settled(found, trial(0))
    assert (writes, names(found)) == (1, [("v3", 100, "3"), ("v7", 0, "7")])
    found, writes = settled(found, trial(25))
    assert (writes, names(found)) == (1, [("v3", 75, "3"), ("v7", 25, "7")])
    found, writes = settled(found, bake())
    assert (writes, names(found)) == (1, [("v7", 95, "7"), ("v3", 5, "3")])
    found, writes = settled(found, Traffic("wines", 10, 7))
    assert (writes, names(found)) == (1, [("v7", 100, "7")])


def test_a_rollback_is_one_write() -> None:
    found, _ = settled(service("wines"), trial(25))
    found, writes = settled(found, Traffic("wines", 6, 3))
    assert (writes, names(found)) == (1, [("v3", 100, "3")])
    found, _ = settled(found, bake())
    found, writes = settled(found, Traffic("wines", 10, 3))
    assert (writes, names(found)) == (1, [("v3", 100, "3")])


def test_all_that_the_chart_says_is_kept_and_what_kserve_refuses_is_left_out() -> None:
    chart = service("wines", nodeSelector={"gpu": "yes"}, scaleTarget=50, labels={"team": "wine"})
    found, _ = settled(chart, trial(5))
    entry = found["spec"]["canary"][0]["predictor"]
    assert entry["nodeSelector"] == {"gpu": "yes"}
    assert entry["labels"] == {"team": "wine", RELEASE: "7"}
    assert not {"maxReplicas", "scaleTarget"} & set(entry)
    stable = found["spec"]["predictor"]
    assert {k: stable[k] for k in ("maxReplicas", "scaleTarget", "nodeSelector", "model")} == {
        k: chart["spec"]["predictor"][k] for k in ("maxReplicas", "scaleTarget", "nodeSelector", "model")
    }


@pytest.mark.parametrize(
    ("least", "replicas", "percent", "pods"), [(2, 1, 0, 1), (2, 1, 50, 1), (8, 1, 50, 4), (8, 3, 1, 3), (2, 5, 1, 2)]
)
def test_pods_of_a_canary_grow_with_its_share(least: int, replicas: int, percent: int, pods: int) -> None:
    """Never none, which KServe would give a dark one, and never more than stable has, which it refuses."""
    found, _ = settled(service("wines", minReplicas=least), trial(percent, replicas=replicas))
    assert found["spec"]["canary"][0]["predictor"]["minReplicas"] == pods


def test_what_kserve_cannot_do_is_said() -> None:
    assert mapping.obstacle(trial(5), RolloutPlan()) == ""
    assert "whole percents" in mapping.obstacle(trial(), RolloutPlan(steps_percent=(0.5, 5)))
    assert "0.5" in mapping.obstacle(trial(0.5), None)
    assert "mirrors no requests" in mapping.obstacle(trial(), RolloutPlan(shadow_percent=10))
    assert "whole percents" in mapping.obstacle(bake(), RolloutPlan(bake_percent=2.5))


def test_an_edit_of_the_split_is_told_from_our_own_writes() -> None:
    found, _ = settled(service("wines"), trial(25))
    assert mapping.edited(found) == ""
    assert mapping.edited(service("wines")) == "", "nothing was applied yet"
    for change, says in [
        (lambda spec: spec["canary"][0].update(trafficPercent=50), "set from 25 to 50"),
        (lambda spec: spec.pop("canary"), "v7 was removed"),
        (lambda spec: spec["predictor"].update(name="v7"), "from 'v3' to 'v7'"),
        (lambda spec: spec["canary"].append({"predictor": {"name": "v9"}, "trafficPercent": 1}), "v9 was added"),
    ]:
        changed = json.loads(json.dumps(found))
        change(changed["spec"])
        assert says in mapping.edited(changed)
        assert mapping.added(changed) == ([9] if "added" in says else [])
        assert mapping.edited(mapping.acknowledged(changed, 6)) == ""


def test_a_generation_that_was_written_later_is_put_right_without_an_edit_of_the_split() -> None:
    """Else the object would say for ever that it is newer than all there is."""
    found, _ = settled(service("wines"), Traffic("wines", 20, 3))
    changed = mapping.towards(found, Wanted(3, {}, 1), 12)
    assert changed is not None
    assert mapping.applied_of(changed) == (Split("v3"), 12)
    assert changed["spec"] == found["spec"]
    assert mapping.towards(with_status(changed), Wanted(3, {}, 1), 13) is None


def test_no_number_is_too_long_to_be_kept() -> None:
    assert mapping.version_of("v" + "9" * 18) == 10**18 - 1
    assert mapping.version_of("v" + "9" * 19) is None


def test_predictors_of_others_are_left_alone() -> None:
    found, _ = settled(service("wines"), trial(5))
    foreign = {"predictor": {"name": "experiment", "model": {"modelFormat": {"name": "x"}}}, "trafficPercent": 1}
    found["spec"]["canary"].append(foreign)
    assert mapping.edited(found) == ""
    found, _ = settled(found, Traffic("wines", 6, 3))
    assert names(found) == [("v3", 99, "3"), ("experiment", 1, "")]
    assert found["spec"]["canary"] == [foreign]


def test_an_annotation_that_cannot_be_read_is_no_edit() -> None:
    found, _ = settled(service("wines"), trial(5))
    for text in ("", "{", "[]", '{"predictor": "v3"}', '{"predictor": "v3", "canary": {"v7": "x"}, "generation": 1}'):
        found["metadata"]["annotations"][APPLIED] = text
        assert mapping.edited(found) == ""
    assert mapping.applied_of(settled(found, trial(5))[0]) == (Split("v3", {"v7": 5}), 5)


def test_phases_of_an_arm() -> None:
    found, _ = settled(service("wines"), trial(5))
    assert mapping.phase_of(found, 7, None) == ("ready", "")
    assert mapping.phase_of(found, 3, None) == ("ready", "")
    down = with_status(found, ready=False)
    assert mapping.phase_of(down, 7, "deploying") == ("deploying", "")
    assert mapping.phase_of(down, 7, "ready") == ("failed", "predictor v7 has no ready pod any more")
    model = {
        "transitionStatus": "BlockedByFailedLoad",
        "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "no"},
    }
    down["status"]["canaryStatuses"][0]["modelStatus"] = model
    assert mapping.phase_of(down, 7, "deploying") == ("failed", "ModelLoadFailed: no")
    assert mapping.phase_of(down, 3, "deploying")[0] == "deploying"


def test_weights_are_followed_once_kserve_says_so() -> None:
    found, _ = settled(service("wines"), trial(5))
    assert mapping.followed(found, Wanted(3, {7: 5}, 1))
    found["status"]["canaryStatuses"][0]["trafficPercent"] = 1
    assert not mapping.followed(found, Wanted(3, {7: 5}, 1))
    assert not mapping.followed(found, Wanted(4, {7: 5}, 1))


def test_who_edited_last() -> None:
    found = service("wines")
    assert mapping.editor_of(found) == "somebody (Kubernetes)"
    found["metadata"]["managedFields"] = [
        {"manager": "helm", "time": "2026-11-21T10:00:00Z", "fieldsV1": {"f:spec": {}}},
        {"manager": "kubectl-edit", "time": "2026-11-21T11:00:00Z", "fieldsV1": {"f:spec": {}}},
        {"manager": "kserve", "time": "2026-11-21T12:00:00Z", "fieldsV1": {"f:status": {}}},
    ]
    assert mapping.editor_of(found) == "kubectl-edit (Kubernetes)"
