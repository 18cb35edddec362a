"""The content hash that names a component: the same files give the same digest on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest_folder(folder: Path) -> tuple[str, int]:
    """(SHA-256 hex over relative paths and contents in path order, total bytes). Raises ValueError for no files."""
    outer = hashlib.sha256()
    size = 0
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise ValueError(f"{folder} holds no files: a component needs at least one")
    for path in files:
        with path.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256").hexdigest()
        outer.update(f"{path.relative_to(folder).as_posix()}\0{inner}\n".encode())
        size += path.stat().st_size
    return outer.hexdigest(), size


def digest_json(value: Mapping[str, Any]) -> str:
    """SHA-256 hex of a JSON value, independent of key order and white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
