"""The servers that the contract tests share."""

from tests.mlflow_fixture import mlflow, mlflow_uri
from tests.postgres import postgres, postgres_url
from tests.rollout_stores import journal, stores  # noqa: F401

__all__ = ["mlflow", "mlflow_uri", "postgres", "postgres_url"]
