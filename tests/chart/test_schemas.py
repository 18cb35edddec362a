"""The schemas that the rendered objects are held against do refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.chart.rendering import of_kind, rendered
from tests.chart.schemas import fault


def _container(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    if manifest["kind"] == "RayService":
        spec = spec["rayClusterConfig"]["headGroupSpec"]
    container: dict[str, Any] = spec["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("kind", ["Deployment", "RayService"])
@pytest.mark.parametrize("wrong", [{"imagePolicy": "Always"}, {"image": 7}, {"ports": [{"name": "http"}]}])
def test_a_misspelt_a_mistyped_and_a_missing_field_are_refused(kind: str, wrong: dict[str, Any]) -> None:
    manifest = copy.deepcopy(of_kind(rendered("cpu-production"), kind)[0])
    assert fault(manifest) is None
    _container(manifest).update(wrong)
    assert fault(manifest) is not None


def test_a_kind_without_a_schema_is_refused() -> None:
    assert fault({"apiVersion": "palate.dev/v1", "kind": "Palate", "metadata": {"name": "x"}}) is not None
