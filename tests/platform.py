"""`palate up` as a user runs it, for end-to-end tests: a real process tree on free ports, in a temporary home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from registry.net import free_port
from serving.local.home import Home

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
START_LIMIT_S = 420


@dataclass(frozen=True)
class Platform:
    home: Home
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return self.home.api_key_file.read_text().strip()

    @property
    def mlflow_url(self) -> str:
        running = self.home.running()
        assert running is not None
        return f"http://127.0.0.1:{running.mlflow_port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)

    def palate(self, *arguments: str, check: bool = True, limit_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a `palate` command in this home."""
        return run_palate(self.home, *arguments, check=check, limit_s=limit_s)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.palate("status", "--json", check=False).stdout))


def run_palate(
    home: Home, *arguments: str, check: bool = True, limit_s: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`variables` are set in its environment; nothing else of ours leaks into it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PALATE_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments],
        cwd=ROOT,
        env={**environment, "PALATE_HOME": str(home.root), "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    if check and done.returncode:
        raise AssertionError(f"palate {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def start(home: Home, port: int, apps: Sequence[Path | str], *options: str, **variables: str) -> str:
    """Bring a platform up; returns what it printed."""
    arguments = [part for app in apps for part in ("--app", str(app))]
    ports = ("--port", str(port), "--mlflow-port", str(free_port()))
    return run_palate(home, "up", *arguments, *ports, "--detach", *options, limit_s=START_LIMIT_S, **variables).stdout


@contextmanager
def running(apps: Sequence[Path | str], *options: str, **variables: str) -> Iterator[Platform]:
    """A platform for the time of the block, started with these options and environment variables; everything it
    started is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="palate-e2e-"))
    platform = Platform(Home(folder / "home"), free_port())
    try:
        start(platform.home, platform.port, apps, *options, **variables)
        yield platform
    finally:
        run_palate(platform.home, "down", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def wine_app(folder: Path, name: str, placement: str = "") -> Path:
    """The wine-orders example under another name, in float32 (so that answers are comparable) and placed otherwise."""
    folder.mkdir(parents=True)
    source = EXAMPLES / "wine-orders"
    for file in ("items.jsonl", "aliases.yaml"):
        shutil.copy(source / file, folder / file)
    text = (source / "app.yaml").read_text(encoding="utf-8").replace("name: wine-orders", f"name: {name}")
    text = text.partition("\nevaluation:")[0].replace("{engine: dense,", "{engine: dense, precision: float32,")
    (folder / "app.yaml").write_text(f"{text}\n{placement}", encoding="utf-8")
    return folder
