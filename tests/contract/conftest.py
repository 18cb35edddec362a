"""The servers that the contract tests share."""

from tests.mlflow_fixture import mlflow, mlflow_uri

__all__ = ["mlflow", "mlflow_uri"]
from tests.postgres import postgres, postgres_url  # noqa: F401
