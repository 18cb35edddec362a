"""The servers that the integration tests share."""

from tests.endpoint import dense_endpoint, dense_home, endpoint, fresh_home, shared_endpoint, tea_home
from tests.mlflow_fixture import mlflow, mlflow_uri
from tests.postgres import postgres, postgres_url
from tests.trial import trial

__all__ = [
    "dense_endpoint",
    "dense_home",
    "endpoint",
    "fresh_home",
    "mlflow",
    "mlflow_uri",
    "postgres",
    "postgres_url",
    "shared_endpoint",
    "tea_home",
    "trial",
]
