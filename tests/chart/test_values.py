"""The values: documented, the schema and the table made from them, unknown keys refused, contradictions refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, PROFILES, ROOT, helm, template


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_docs", ROOT / "charts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["chart_docs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_schema_and_table_are_what_values_yaml_says(docs: ModuleType) -> None:
    schema, readme = docs.rendered(docs.VALUES.read_text(), docs.README.read_text())
    assert schema == docs.SCHEMA.read_text(), "run scripts/chart-docs"
    assert readme == docs.README.read_text(), "run scripts/chart-docs"


@pytest.mark.parametrize(
    "text", ["name: x\n", "# A list.\nnames: []\n", "# A map.\nnames: {}\n", "# Nothing.\nname: null\n"]
)
def test_a_key_without_comment_or_type_is_refused(docs: ModuleType, text: str) -> None:
    with pytest.raises(docs.Undocumented):
        docs.schema_of(docs.read_values(text))


def test_a_word_of_schema_wins_and_a_nested_key_is_closed(docs: ModuleType) -> None:
    text = '# Outer.\nouter:\n  # How many.\n  # @{"minimum": 1}\n  many: 2\n'
    outer = docs.schema_of(docs.read_values(text))["properties"]["outer"]
    assert outer["additionalProperties"] is False
    assert outer["properties"]["many"] == {"description": "How many.", "type": "integer", "minimum": 1}


@pytest.mark.parametrize(
    "unknown",
    [
        {"replicas": 2},
        {"mlflow": {"replica": 2}},
        {"config": {"max_que": 1}},
        {"apps": {"wine-orders": {"folders": "x"}}},
        {"ray": {"groups": {"router": {"minReplica": 1}}}},
        {"training": {"jobs": {"x": {"ap": "wine-orders"}}}},
        {"monitoring": {"limits": {"errors": 1}}},
        {"engine": "serve"},
        {"config": {"max_queue": 0}},
        {"serving": {"drainS": "45"}},
    ],
    ids=json.dumps,
)
def test_unknown_keys_and_wrong_types_are_refused(unknown: dict[str, Any], tmp_path: Path) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text(yaml.safe_dump(unknown))
    done = template("trial", "--values", str(extra))
    assert done.returncode != 0
    assert "values.schema.json" in done.stderr or "don't meet the specifications" in done.stderr


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("apps", {"apps": None, "seed": {"enabled": False}}, "apps is empty"),
    ("name", {"apps": {"Wine": {}}}, "apps.Wine"),
    ("learn-folder", {"apps": {"wine-orders": {"folder": "", "learn": True}}}, "folder is empty"),
    ("learn-off", {"apps": {"wine-orders": {"learn": True}}}, "learner.enabled is false"),
    ("learner-idle", {"learner": {"enabled": True}}, "no app has `learn: true`"),
    ("seed", {"apps": {"wine-orders": {"folder": ""}, "packages": {"folder": ""}}}, "no app has a `folder`"),
    ("app-bounds", {"apps": {"packages": {"minReplicas": 5}}}, "apps.packages: maxReplicas"),
    ("router", {"ray": {"groups": {"router": None, "other": {"minReplicas": 1}}}}, "ray.groups has no `router`"),
    ("bounds", {"ray": {"groups": {"router": {"minReplicas": 9}}}}, "ray.groups.router: maxReplicas"),
    ("never", {"ray": {"groups": {"phases": {}}}}, "it would never have a pod"),
    ("gpu-without", {"ray": {"groups": {"phases": {"minReplicas": 1, "gpu": True}}}}, "name no GPU"),
    (
        "gpu-image",
        {"ray": {"groups": {"phases": {"minReplicas": 1, "resources": {"limits": {"nvidia.com/gpu": 1}}}}}},
        "the CPU image cannot use it",
    ),
    (
        "router-zero",
        {"ray": {"autoscaler": {"enabled": True}, "groups": {"router": {"minReplicas": 0}}}},
        "the endpoint needs a pod",
    ),
    (
        "autoscaling",
        {"serving": {"router": {"autoscaling": {"enabled": True, "minReplicas": 9}}}},
        "serving.router.autoscaling",
    ),
    ("incremental-class", {"ray": {"upgrade": {"type": "NewClusterWithIncrementalUpgrade"}}}, "gatewayClassName"),
    (
        "incremental-autoscaler",
        {"ray": {"upgrade": {"type": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "istio"}}},
        "needs ray.autoscaler.enabled",
    ),
    (
        "incremental-route",
        {
            "ray": {
                "autoscaler": {"enabled": True},
                "upgrade": {"type": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "istio"},
            },
            "ingress": {"enabled": True, "host": "x"},
        },
        "lead past the Gateway",
    ),
    ("kserve-route", {"engine": "kserve", "ingress": {"enabled": True, "host": "x"}}, "KServe makes the routes"),
    (
        "two-routes",
        {"gateway": {"enabled": True, "parentRefs": [{"name": "x"}]}, "ingress": {"enabled": True, "host": "x"}},
        "choose one",
    ),
    ("gateway", {"gateway": {"enabled": True}}, "gateway.parentRefs"),
    ("ingress", {"ingress": {"enabled": True}}, "ingress.host"),
    ("callers", {"ingress": {"enabled": True, "host": "x"}}, "networkPolicy.callers"),
    ("kserve-callers", {"engine": "kserve"}, "engine kserve needs networkPolicy.callers"),
    ("mlflow-uri", {"mlflow": {"mode": "existing"}}, "needs mlflow.uri"),
    ("mlflow-mode", {"mlflow": {"uri": "https://mlflow.example.com"}}, "mlflow.mode is bundled"),
    ("mlflow-claim", {"mlflow": {"replicas": 2}}, "mlflow.artifacts.destination"),
    ("chroma-url", {"chroma": {"mode": "existing"}}, "needs chroma.url"),
    ("chroma-mode", {"chroma": {"url": "http://chroma:8000"}}, "chroma.mode is not existing"),
    ("store", {"secrets": {"external": {"enabled": True}}}, "secrets.external.storeName"),
    ("job-app", {"training": {"jobs": {"nightly": {"app": "other"}}}}, "not in apps"),
    (
        "job-folder",
        {"apps": {"packages": {"folder": ""}}, "training": {"jobs": {"nightly": {"app": "packages"}}}},
        "training.jobs.nightly trains packages",
    ),
    ("job-claim", {"training": {"jobs": {"nightly": {"app": "packages", "workers": 2}}}}, "homeClaim"),
    ("env-setting", {"env": {"PALATE_HOME": "/x"}}, "stand under `config`"),
    ("env-secret", {"env": {"OPENAI_API_KEY": "x"}}, "looks like a secret"),
]


@pytest.mark.parametrize(("values", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text(yaml.safe_dump(values))
    done = template("trial", "--values", str(extra))
    assert done.returncode != 0
    assert said in done.stderr


def test_every_refusal_of_the_chart_is_tested() -> None:
    refusals = (CHART / "templates" / "refuse.yaml").read_text().count("fail ")
    assert len(REFUSED) == refusals


def test_without_a_profile_it_says_what_is_missing() -> None:
    done = helm("template", "palate", str(CHART))
    assert "apps is empty" in done.stderr


def test_every_profile_is_an_example_of_these_values() -> None:
    assert {"trial", "cpu-production", "gpu-production", "existing-mlflow", "air-gapped", "kserve"} == set(PROFILES)
