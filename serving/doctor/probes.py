"""Looks at the outside for `palate doctor`. What is away is an answer here, not an error: probes return it as text."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

import httpx
from packaging.utils import canonicalize_name

from registry.database import open_database, schema_versions
from registry.database.dialect import clock_s
from registry.errors import RegistryError, ReleaseNotFound
from registry.ports import ReleaseStore
from serving.doctor.checks import Reach
from serving.errors import PalateError
from serving.secret_files import mounted_bytes, mounted_secret

TIMEOUT_S = 5.0
SECRET_FILES = ("api-key", "trace-secret", "webhook-secret", "people.secret", "ray.secret")


def libraries() -> tuple[list[str], dict[str, str]]:
    """(what our distribution requires, what is installed)."""
    required = [text for text in requires("palate") or () if "extra ==" not in text]
    return required, {canonicalize_name(d.name): d.version for d in distributions() if d.name}


def home(folder: Path) -> tuple[str, int, list[str]]:
    """(why it cannot be written, free bytes, secrets in it that others may read)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        return str(error.strerror or error), 0, []
    readable = [n for n in SECRET_FILES if (folder / n).is_file() and (folder / n).stat().st_mode & 0o077]
    return "", shutil.disk_usage(folder).free, readable


def mounted_secrets(folder: Path, texts: Sequence[str], digits: Sequence[str]) -> list[str]:
    """What is wrong with the secrets every process needs; `digits`: those that hold 32 bytes in hex digits."""
    found = []
    checks: list[tuple[Callable[[Path, str], object], Sequence[str]]] = [
        (mounted_secret, texts),
        (mounted_bytes, digits),
    ]
    for read, names in checks:
        for name in names:
            try:
                read(folder, name)
            except PalateError as error:
                found.append(error.detail)
    return found


def database(url: str, wall: Callable[[], float] = time.time) -> tuple[Reach, str, str]:
    """(whether it answers, the version of its schema, the newest version)."""
    try:
        schema, head = schema_versions(url)
        opened = open_database(url)
        with opened.reading() as connection:
            before = wall()
            theirs = clock_s(connection)
            skew_s = theirs - (before + wall()) / 2
        opened.close()
    except RegistryError as error:
        return Reach(str(error)), "", ""
    return Reach(skew_s=skew_s), schema, head


def http(
    url: str, headers: Mapping[str, str] | None = None, wall: Callable[[], float] = time.time
) -> tuple[Reach, httpx.Response | None]:
    """GET; the answer whatever its status, and the skew of its Date header, which is whole seconds. An error that says
    its `problems`, as /readyz does, is an answer."""
    try:
        before = wall()
        answer = httpx.get(url, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Reach(f"{url} does not answer: {error or type(error).__name__}"), None
    skew_s = None
    if date := answer.headers.get("date"):
        try:
            # Date is cut to the second: half of one is the least wrong guess.
            skew_s = parsedate_to_datetime(date).timestamp() + 0.5 - (before + wall()) / 2
        except (ValueError, TypeError):
            skew_s = None
    if answer.status_code in (401, 403):
        return Reach(f"{url} refuses us ({answer.status_code}): the credentials are wrong or missing", skew_s), answer
    if answer.is_error and "problems" not in json_of(answer):
        return Reach(f"{url} answers {answer.status_code} {answer.reason_phrase}".rstrip(), skew_s), answer
    return Reach(skew_s=skew_s), answer


def json_of(answer: httpx.Response | None) -> dict[str, Any]:
    """{} for what is no JSON object."""
    try:
        body = answer.json() if answer is not None else {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def stable(store: ReleaseStore, app: str) -> tuple[Mapping[str, Any], str, bool]:
    """(the app spec of the stable release, why it is not known, whether there is none)."""
    try:
        return store.get(app, "stable").release.spec, "", False
    except ReleaseNotFound:
        return {}, "", True
    except RegistryError as error:
        return {}, str(error), False


def local_gpus() -> float:
    """GPUs that a process of this machine, or this container, may use."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, env=dict(os.environ))
    return float(sum(line.startswith("GPU ") for line in done.stdout.splitlines()))
