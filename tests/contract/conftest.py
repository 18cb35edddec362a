"""The servers that the contract tests share."""

from tests.mlflow_fixture import mlflow, mlflow_uri
from tests.postgres import postgres, postgres_url

__all__ = ["mlflow", "mlflow_uri", "postgres", "postgres_url"]
