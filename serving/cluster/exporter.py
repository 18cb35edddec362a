"""Prometheus metrics of one pod: what all of Palate's processes in it wrote into PROMETHEUS_MULTIPROC_DIR.

A request for `/metrics` at the endpoint is answered by any replica of any node; Prometheus has to ask each pod. Runs as
a sidecar of Ray workers, `python -m serving.cluster.exporter`, sharing the folder and the process ids with them. It
imports nothing but prometheus_client, so that it costs a pod some 30 MB.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client import multiprocess as prometheus_multiprocess
from prometheus_client.metrics_core import Metric

PORT = 9102
WRITER = re.compile(r".*_(?P<pid>\d+)\.db")


class PodMetrics:
    """A collector over the folder. The gauges of a process that ended are dropped first; its counters stay, since a
    counter must not fall."""

    def __init__(self, folder: Path, alive: Callable[[int], bool]) -> None:
        self._folder = folder
        self._alive = alive

    def collect(self) -> list[Metric]:
        for pid in {int(match["pid"]) for file in self._folder.iterdir() if (match := WRITER.fullmatch(file.name))}:
            if not self._alive(pid):
                prometheus_multiprocess.mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
        collector = prometheus_multiprocess.MultiProcessCollector(None, str(self._folder))  # type: ignore[no-untyped-call]
        return list(collector.collect())  # type: ignore[no-untyped-call]


def process_alive(pid: int) -> bool:
    """In a pod whose containers do not share their process ids nobody can tell, and every process counts as alive: this
    one is the first of its container then."""
    return os.getpid() == 1 or Path(f"/proc/{pid}").exists()


def main() -> int:
    """Until SIGTERM. Status 2 when it is not set up."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    if not folder or not Path(folder).is_dir():
        print(
            f"palate exporter: PROMETHEUS_MULTIPROC_DIR={folder!r} is no folder: mount the one the Ray container has",
            file=sys.stderr,
        )
        return 2
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    registry = CollectorRegistry()
    registry.register(PodMetrics(Path(folder), process_alive))
    server, _ = start_http_server(int(os.environ.get("PALATE_EXPORTER_PORT", PORT)), registry=registry)
    stop.wait()
    server.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
