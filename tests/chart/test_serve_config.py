"""serveConfigV2: Ray's own schema takes it, nothing in it is unknown, and what it names is in the code."""

from __future__ import annotations

import importlib
import json
import shlex
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from serving.app import INGRESS, ingress_application
from serving.config import ServingConfig
from tests.chart.rendering import PROFILES, of_kind, rendered

WITH_RAY = [profile for profile in PROFILES if profile != "kserve"]
pytestmark = pytest.mark.parametrize("profile", WITH_RAY)


def serve_config(profile: str) -> dict[str, Any]:
    (service,) = of_kind(rendered(profile), "RayService")
    config: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config


def unknown(given: Any, model: type[BaseModel], at: str) -> list[str]:
    """Keys that Ray would take without a word and ignore."""
    found = []
    for key, value in given.items():
        if key not in model.model_fields:
            found.append(f"{at}.{key}")
            continue
        inner = next((a for a in _models(model.model_fields[key].annotation)), None)
        if inner is not None:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    found += unknown(one, inner, f"{at}.{key}")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def test_ray_takes_it_and_knows_every_key(profile: str) -> None:
    config = serve_config(profile)
    ServeDeploySchema.model_validate(config)
    assert not unknown(config, ServeDeploySchema, "serveConfigV2")
    assert unknown({**config, "applicatons": []}, ServeDeploySchema, "") == [".applicatons"]


def test_its_applications_are_in_the_code(profile: str) -> None:
    for application in serve_config(profile)["applications"]:
        module, name = application["import_path"].split(":")
        assert callable(getattr(importlib.import_module(module), name))
    endpoint = serve_config(profile)["applications"][0]
    assert endpoint["name"] == INGRESS
    built = ingress_application(ServingConfig())
    assert [one["name"] for one in endpoint["deployments"]] == [built._bound_deployment.name]


def test_the_router_takes_as_many_requests_as_may_wait(profile: str) -> None:
    (service,) = of_kind(rendered(profile), "RayService")
    container = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    router = serve_config(profile)["applications"][0]["deployments"][0]
    assert router["max_ongoing_requests"] >= int(environment["PALATE_MAX_QUEUE"])


def test_a_replica_of_the_router_fits_a_pod_of_its_group(profile: str) -> None:
    """And its group gives the resource that it asks for, as Ray reads it out of a shell's command line."""
    (service,) = of_kind(rendered(profile), "RayService")
    groups = {g["groupName"]: g for g in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    for name, group in groups.items():
        (resources,) = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(resources) == {name: 1000}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    actor = serve_config(profile)["applications"][0]["deployments"][0]["ray_actor_options"]
    container = groups["router"]["template"]["spec"]["containers"][0]
    assert actor["resources"] == {"router": 1}
    assert actor["num_cpus"] <= float(container["resources"]["requests"]["cpu"])
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0"
