"""The example of a language model on KServe: sound by KServe's own schema, and reached as its comment says."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from serving.schema.phase_specs import LanguageModelSpec
from tests.api_objects import Schema

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "k8s" / "examples" / "llm-inference-service.yaml"
CRD = ROOT / "tests" / "chart" / "crds" / "serving.kserve.io_llminferenceservices.json"


def test_kserve_would_take_it() -> None:
    found = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    group, version = found["apiVersion"].split("/")
    crd = json.loads(CRD.read_bytes())
    assert (crd["group"], crd["kind"]) == (group, found["kind"])
    Schema.of(crd, version).check(found, strict=True)


def test_the_comment_is_an_app_spec() -> None:
    lines = [line[1:] for line in EXAMPLE.read_text("utf-8").splitlines() if line.startswith("#   ")]
    spec = LanguageModelSpec.model_validate(yaml.safe_load("\n".join(lines))["language_model"])
    assert spec.model == yaml.safe_load(EXAMPLE.read_text("utf-8"))["spec"]["model"]["name"]


def test_adapters_fit() -> None:
    model = yaml.safe_load(EXAMPLE.read_text("utf-8"))["spec"]["model"]["lora"]
    assert len(model["adapters"]) <= model["maxAdapters"]
    assert all("@" in adapter["name"] for adapter in model["adapters"])
