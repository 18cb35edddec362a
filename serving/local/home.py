"""The folder that holds all local state, and who is using it: one `palate up` at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from registry.files import replace_file
from registry.net import port_fault
from serving.errors import BadRequest

MIN_FREE_BYTES = 2 * 2**30


class SetupError(Exception):
    """Something about this machine that stops `palate up`; the message names it and the fix in one line."""


@dataclass(frozen=True, slots=True)
class Running:
    """A `palate up` that runs: its process (`created_s` tells it from a later one with the same pid) and ports.

    `new_key`: this start made the local API key, so the screen shows it, this once.
    """

    pid: int
    created_s: float
    port: int
    mlflow_port: int
    apps: tuple[str, ...]
    ready: bool = False
    new_key: bool = False
    children: tuple[tuple[int, float], ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under PALATE_HOME."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def state_file(self) -> Path:
        return self.run / "up.json"

    @property
    def lock_file(self) -> Path:
        return self.run / "up.lock"

    @property
    def sockets(self) -> Path:
        """A short folder of this home's own for Unix sockets, whose paths may have 107 characters only."""
        digest = hashlib.blake2s(str(self.root.resolve()).encode(), digest_size=5).hexdigest()
        return Path(tempfile.gettempdir()) / f"palate-{os.getuid()}-{digest}"

    @property
    def api_key_file(self) -> Path:
        return self.root / "api-key"

    def prepare(self) -> None:
        """Raises SetupError when the folder cannot be written or its disk is nearly full."""
        try:
            for folder in (self.root, self.run, self.logs, self.sockets):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.sockets.stat().st_uid != os.getuid():
                raise SetupError(f"{self.sockets} belongs to another user: remove it, or choose another --home")
            probe = self.run / f"probe-{os.getpid()}"
            probe.write_text("x")
            probe.unlink()
        except OSError as error:
            raise SetupError(f"{self.root} cannot be written ({error.strerror}): choose another with --home") from None
        free = shutil.disk_usage(self.root).free
        if free < MIN_FREE_BYTES:
            raise SetupError(
                f"only {free / 2**30:.1f} GiB free on the disk of {self.root}: free at least "
                f"{MIN_FREE_BYTES // 2**30} GiB, or choose another disk with --home"
            )

    def running(self) -> Running | None:
        """The `palate up` of this home that is alive, or None."""
        state = self.last_state()
        return state if state is not None and alive(state.pid, state.created_s) else None

    def last_state(self) -> Running | None:
        try:
            raw = json.loads(self.state_file.read_text(encoding="utf-8"))
            children = tuple((int(pid), float(at)) for pid, at in raw.pop("children"))
            return Running(**{**raw, "apps": tuple(raw["apps"]), "children": children})
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
            return None

    def write_state(self, state: Running) -> None:
        replace_file(self.state_file, json.dumps(asdict(state)))

    def write_deployments(self, deployments: Mapping[str, Any]) -> None:
        """What runs on Ray, for `palate status`."""
        replace_file(self.run / "deployments.json", json.dumps(deployments))

    def deployments(self) -> dict[str, Any]:
        """What was last written; {} before that."""
        try:
            return dict(json.loads((self.run / "deployments.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    def learner(self) -> dict[str, Any]:
        """What the learner says of each app, while it runs; {} without one."""
        try:
            said = json.loads((self.run / "learner.json").read_text(encoding="utf-8"))
            return dict(said["apps"]) if psutil.pid_exists(int(said["pid"])) else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    def secret(self, name: str) -> bytes:
        """32 random bytes, made on first use, readable by the owner only. Raises SetupError for a file that holds
        something else or cannot be used."""
        from serving.secret_files import ensure_secret

        path = self.root / f"{name}.secret"
        try:
            return ensure_secret(path)
        except (OSError, BadRequest) as error:
            raise SetupError(f"the secret in {path} cannot be used ({error}): see to the file, or delete it") from None


def alive(pid: int, created_s: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created_s) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def check_port(port: int, option: str) -> None:
    """Raises SetupError when somebody listens on the port already."""
    if fault := port_fault(port):
        raise SetupError(f"port {port} is in use ({fault}): choose another with {option}")
