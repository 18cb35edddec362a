"""A first Secret with fresh random values: `python -m serving.cluster.secrets [NAME] | kubectl apply -f -`.

For installations without a secret manager. What belongs to others, databases and credentials, is left to fill in. Run
it once: a second one would orphan traces, pseudonyms and webhooks.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys

import yaml

from serving.keys import LOCAL_KEY_FILE, new_key
from serving.secret_files import TRACE_SECRET_FILE, WEBHOOK_SECRET_FILE
from serving.store.people import MOUNTED_SECRET

TO_FILL_IN = {
    "database-url": "postgresql://palate:PASSWORD@HOST:5432/palate",
    "mlflow-database-url": "postgresql+psycopg://palate:PASSWORD@HOST:5432/mlflow",
    "mlflow-username": "palate",
    "mlflow-password": "PASSWORD",
}


def secret_manifest(name: str) -> str:
    """YAML of the Secret that k8s/README.md describes."""
    values = {
        TRACE_SECRET_FILE: secrets.token_hex(32),
        MOUNTED_SECRET: secrets.token_hex(32),
        WEBHOOK_SECRET_FILE: secrets.token_hex(32),
        LOCAL_KEY_FILE: new_key().plaintext,
        # What MLflow keeps webhook secrets with, and what its sign-in forms need: they must outlive its pod.
        "mlflow-webhook-key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "mlflow-flask-secret": secrets.token_hex(32),
        **TO_FILL_IN,
    }
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
    return yaml.safe_dump(manifest, sort_keys=False)


if __name__ == "__main__":
    sys.stdout.write(secret_manifest(sys.argv[1] if len(sys.argv) > 1 else "palate"))
