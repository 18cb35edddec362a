"""Secrets that processes share: files of a home, made on the first use, or files of a Secret that is mounted.

On one machine nobody should have to make up a secret; in a cluster a pod that makes up its own would disagree with the
others. Called by `serving.stores`, `serving.controller`, `serving.keys` and `serving.store.people`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from serving.errors import BadRequest

TRACE_SECRET_FILE = "trace-secret"
WEBHOOK_SECRET_FILE = "webhook-secret"


def mounted_secret(folder: Path, name: str) -> str:
    """The text of a secret that is mounted. Raises BadRequest: nothing is made up in the place of one that lacks."""
    try:
        text = (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadRequest(
            f"{folder / name} cannot be read ({why}): add the key {name!r} to the Secret that is mounted there",
            field="PALATE_SECRETS",
        ) from None
    if not text:
        raise BadRequest(
            f"{folder / name} is empty: give the key {name!r} of the Secret a value", field="PALATE_SECRETS"
        )
    return text


def mounted_bytes(folder: Path, name: str) -> bytes:
    """The 32 bytes of a secret that is mounted as hex digits. Raises BadRequest."""
    return _secret_bytes(folder / name, mounted_secret(folder, name))


def ensure_trace_secret(home: Path, mounted: Path | None = None) -> bytes:
    """The 32 bytes that sign trace ids: `mounted`, or this home's own, made on the first start. Replicas on other
    machines need the same. Raises BadRequest when the file holds something else."""
    if mounted is not None:
        return mounted_bytes(mounted, TRACE_SECRET_FILE)
    return ensure_secret(home / TRACE_SECRET_FILE)


def ensure_webhook_secret(home: Path, mounted: Path | None = None) -> str:
    """The text that signs MLflow's webhooks: `mounted`, or this home's own, made on the first use. The controller gives
    it to MLflow, the endpoint checks deliveries with it. Raises BadRequest for a file that is empty."""
    if mounted is not None:
        return mounted_secret(mounted, WEBHOOK_SECRET_FILE)
    path = home / WEBHOOK_SECRET_FILE
    text = _secret_text(path)
    if not text:
        raise BadRequest(f"{path} holds no webhook secret: delete it, and the next start writes one")
    return text


def ensure_secret(path: Path) -> bytes:
    """32 random bytes, made on the first use, as hex digits that only the owner can read. Raises BadRequest for a file
    that holds something else, OSError for one that cannot be used."""
    return _secret_bytes(path, _secret_text(path))


def _secret_bytes(path: Path, text: str) -> bytes:
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise BadRequest(f"{path} does not hold 32 bytes in hex digits: delete it, and the next start writes it anew")
    return secret


def _secret_text(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        return read_or_create_secret(path, lambda: secrets.token_hex(32))


def read_or_create_secret(path: Path, new: Callable[[], str]) -> str:
    """The text in `path`, which is made whole or not at all, with mode 0600. The caller holds a lock."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        pass
    else:
        path.chmod(0o600)
        return text
    text = new()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return text
