"""Starts, watches and stops the servers that are measured. Used by `bench.speed`; one server lives at a time.

Every process of a server inherits one environment variable, by which even those that detach are found: to add up
memory while it runs and to leave nothing behind when it stops.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "PALATE_BENCH_RUN"


class BenchError(Exception):
    """The measurement cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """How one system is run. A command that returns (`detached`) left the server running; `stop` ends it."""

    command: Sequence[str]
    url: str
    env: dict[str, str] = field(default_factory=dict)
    detached: bool = False
    stop: Sequence[str] = ()
    key_file: Path | None = None
    ready_timeout_s: float = 300.0

    def key(self) -> str | None:
        return self.key_file.read_text(encoding="utf-8").strip() if self.key_file else None


def post(url: str, body: bytes, key: str | None, timeout_s: float = 30.0) -> bytes:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=timeout_s) as response:
        return bytes(response.read())


def marked(mark: str) -> list[psutil.Process]:
    """Every process that carries the mark, however it was started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue  # it ended, or belongs to somebody else
    return found


class MemoryWatch:
    """The highest sum of resident memory over a server's processes, in bytes, looked at once a second."""

    def __init__(self, mark: str) -> None:
        self.peak_bytes = 0
        self.processes = 0
        self._mark = mark
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        members = marked(self._mark)
        self.processes = len(members)
        while True:
            total = 0
            for process in members:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(1.0):
                return


@contextmanager
def running(server: Server, log: Path, first_body: bytes) -> Iterator[str]:
    """Starts the server and waits until it answers; gives the mark of its processes. Nothing of it is left after."""
    mark = uuid.uuid4().hex
    env = {**os.environ, **server.env, MARK: mark}
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                server.command, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
            _wait_until_ready(server, process, log, first_body)
            yield mark
            if server.stop:
                subprocess.run(server.stop, env=env, stdout=output, stderr=output, check=True, timeout=120)
    finally:
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        _end(marked(mark))


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path, body: bytes) -> None:
    deadline = time.monotonic() + server.ready_timeout_s
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None and not (server.detached and code == 0):
            raise BenchError(f"{' '.join(server.command)} ended with {code}:\n{_tail(log)}")
        if code == 0 or not server.detached:
            try:
                post(server.url, body, server.key())
                return
            except (urllib.error.URLError, OSError):
                pass  # not up yet, or still loading
        time.sleep(0.3)
    raise BenchError(f"{' '.join(server.command)} did not answer in {server.ready_timeout_s:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def _end(left: list[psutil.Process]) -> None:
    for process in left:
        try:
            process.terminate()
        except psutil.Error:
            continue
    for process in psutil.wait_procs(left, timeout=20)[1]:
        try:
            process.kill()
        except psutil.Error:
            continue
