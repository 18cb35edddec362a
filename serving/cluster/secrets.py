"""First secrets, with fresh random values, for installations without a secret manager.

`python -m serving.cluster.secrets [NAME] | kubectl apply -f -` makes the Secret; what belongs to others, databases and
credentials, is left to fill in. `python -m serving.cluster.secrets --files - | tar -x -C k8s/compose` makes the files
of k8s/compose.yaml. Run it once: a second time would orphan traces, pseudonyms and webhooks.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import secrets
import sys
import tarfile

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


def mounted_files() -> dict[str, str]:
    """What every process reads from PALATE_SECRETS: name -> text."""
    return {
        TRACE_SECRET_FILE: secrets.token_hex(32),
        MOUNTED_SECRET: secrets.token_hex(32),
        WEBHOOK_SECRET_FILE: secrets.token_hex(32),
        LOCAL_KEY_FILE: new_key().plaintext,
    }


def mlflow_keys() -> dict[str, str]:
    """What MLflow keeps webhook secrets with, and what its sign-in forms need: they must outlive its container."""
    return {
        "mlflow-webhook-key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "mlflow-flask-secret": secrets.token_hex(32),
    }


def secret_manifest(name: str) -> str:
    """YAML of the Secret that k8s/README.md describes."""
    values = mounted_files() | mlflow_keys() | TO_FILL_IN
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
    return yaml.safe_dump(manifest, sort_keys=False)


def compose_archive() -> bytes:
    """A tar with `secrets/` and `.env`. Secrets can be read by all, since the container's user is none of the host's:
    let only those who may read them into the folder where it is unpacked."""
    passwords = ("POSTGRES_PASSWORD", "MLFLOW_PASSWORD", "GRAFANA_PASSWORD", "RAY_AUTH_TOKEN")
    variables = {name: secrets.token_urlsafe(24) for name in passwords}
    variables |= {name.upper().replace("-", "_"): value for name, value in mlflow_keys().items()}
    files = {f"secrets/{name}": (0o444, text) for name, text in mounted_files().items()}
    files[".env"] = (0o600, "".join(f"{name}={value}\n" for name, value in variables.items()))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, (mode, text) in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = mode, len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make first secrets.")
    parser.add_argument("name", nargs="?", default="palate", help="of the Secret")
    parser.add_argument("--files", choices=["-"], help="write a tar with the files of k8s/compose.yaml instead")
    given = parser.parse_args()
    if given.files:
        sys.stdout.buffer.write(compose_archive())
    else:
        sys.stdout.write(secret_manifest(given.name))


if __name__ == "__main__":
    main()
