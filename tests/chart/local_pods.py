"""Containers of rendered manifests as processes of this machine: same commands, same environment, same files, with
paths, ports and host names of the cluster replaced by ones that are free here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chart.rendering import ROOT


@dataclass
class Local:
    """`secret`: the Secret's keys. `instead`: what stands in for a text of the manifests, longest first."""

    folder: Path
    secret: Mapping[str, str]
    instead: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def here(self, text: str) -> str:
        for there in sorted(self.instead, key=len, reverse=True):
            text = text.replace(there, self.instead[there])
        return text

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Nothing of ours but what finds programs."""
        found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.folder)}
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            value = self.secret[source["key"]] if source else variable["value"]
            found[variable["name"]] = value if source else self.here(value)
        return found

    def run(self, container: Mapping[str, Any], limit_s: float = 120) -> str:
        """To its end. Returns what it printed; raises AssertionError with that where it failed."""
        done = subprocess.run(
            self._command(container), env=self.environment(container), cwd=ROOT, capture_output=True, text=True,
            timeout=limit_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, container: Mapping[str, Any], name: str) -> subprocess.Popen[bytes]:
        return self.start_process(self._command(container), self.environment(container), name)

    def start_process(self, command: list[str], environment: Mapping[str, str], name: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                command, env=dict(environment), cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def end(self) -> None:
        """Everything that was started here, and what that started."""
        for process in reversed(self.processes):
            try:
                tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            except psutil.NoSuchProcess:
                continue
            for one in tree:
                try:
                    one.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            process.wait(timeout=30)

    def _command(self, container: Mapping[str, Any]) -> list[str]:
        return [self.here(part) for part in container["command"]]
