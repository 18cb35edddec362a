"""The chart's README says what runs; here it is held to that."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.chart.footprint import markdown
from tests.chart.rendering import CHART, PROFILES, of_kind, rendered

README = (CHART / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_table_of_what_runs_is_what_is_rendered(profile: str) -> None:
    said = README.split(f"**{profile}**")[1].split("\n**")[0].split("\nDuring")[0]
    assert [line for line in said.splitlines() if line.startswith("| `")] == markdown(rendered(profile))


def test_the_fields_that_gitops_must_ignore_are_not_rendered() -> None:
    for service in of_kind(rendered("kserve"), "InferenceService"):
        assert "canary" not in service["spec"]
        assert "name" not in service["spec"]["predictor"]
        assert "palate.dev/release" not in service["spec"]["predictor"]["labels"]
        assert "palate.dev/applied" not in service["metadata"]["annotations"]


def test_the_values_that_the_text_names_are_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = README.split("## Values")[0]
    for path in re.findall(
        r"`((?:serving|ray|mlflow|secrets|monitoring|networkPolicy|image)(?:\.[a-zA-Z]+)+)[:`]", text
    ):
        at = values
        for part in path.split("."):
            assert part in at, path
            at = at[part]
