"""The registry's environment: defaults, what is read, and that an operator's own MLflow settings win."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.config import MLFLOW_CLIENT_DEFAULTS, RegistryConfig, bound_mlflow_client
from registry.errors import RegistryError


def test_components_lie_in_home_unless_told_otherwise() -> None:
    assert RegistryConfig.from_env({"PALATE_HOME": "/h"}).components == Path("/h/components")
    told = {"PALATE_HOME": "/h", "PALATE_COMPONENT_CACHE": "/c", "PALATE_MLFLOW_URI": "https://mlflow.example"}
    config = RegistryConfig.from_env(told)
    assert (config.components, config.mlflow_uri) == (Path("/c"), "https://mlflow.example")
    assert RegistryConfig.from_env({"PALATE_MLFLOW_URI": ""}) == RegistryConfig()


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(RegistryError, match="PALATE_MLFLOW_URI='sqlite:///x'"):
        RegistryConfig.from_env({"PALATE_MLFLOW_URI": "sqlite:///x"})


def test_what_an_operator_set_is_kept() -> None:
    env = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}
    bound_mlflow_client(env)
    assert env == {**MLFLOW_CLIENT_DEFAULTS, "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}
