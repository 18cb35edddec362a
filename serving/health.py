"""What the kubelet and Prometheus ask of `palate controller`: is it alive, does it reach the database, does it lead.

`serving.controller` wraps its controller in `Watched` and serves it on PALATE_CONTROLLER_PORT.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from registry.controller import Ticks

HUNG_S = 60.0
"""Far beyond what the database's own time limits let one turn take."""


class Watched:
    """A controller whose turns are noted. `tick` and `close` are the controller's own."""

    def __init__(self, controller: Ticks, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._controller = controller
        self._monotonic = monotonic
        self._began = monotonic()
        self._reached = False
        self._leads = False
        self._last_turn_s = 0.0
        self._turns = 0
        self._failures = 0

    def tick(self, now: float) -> bool:
        self._began = self._monotonic()
        done = False
        try:
            self._leads = self._controller.tick(now)
            done = True
        finally:
            self._reached = done
            if done:
                self._turns, self._last_turn_s = self._turns + 1, now
            else:
                self._leads, self._failures = False, self._failures + 1
        return self._leads

    def close(self) -> None:
        self._controller.close()

    @property
    def alive(self) -> bool:
        """Turns begin."""
        return self._monotonic() - self._began < HUNG_S

    @property
    def ready(self) -> bool:
        """The last turn got through: it led, or saw that another does."""
        return self.alive and self._reached

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        leads = GaugeMetricFamily("palate_controller_leads", "1 while this controller holds the lease.")
        leads.add_metric([], float(self._leads))
        last = GaugeMetricFamily("palate_controller_last_turn_timestamp_seconds", "When a turn last got through.")
        last.add_metric([], self._last_turn_s)
        turns = CounterMetricFamily("palate_controller_turns", "Turns, by outcome.", labels=["outcome"])
        turns.add_metric(["done"], self._turns)
        turns.add_metric(["failed"], self._failures)
        yield from (leads, last, turns)


def serve_health(watched: Watched, port: int, host: str = "") -> ThreadingHTTPServer:
    """/healthz, /readyz and /metrics, from a thread; `shutdown` ends it. Raises OSError for a port that is taken."""
    registry = CollectorRegistry()
    registry.register(watched)

    class Handler(BaseHTTPRequestHandler):
        answers: ClassVar[dict[str, Callable[[], bool]]] = {
            "/healthz": lambda: watched.alive,
            "/readyz": lambda: watched.ready,
        }

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
            elif self.path in self.answers:
                good = self.answers[self.path]()
                self._send(200 if good else 503, "application/json", json.dumps({self.path[1:]: good}).encode())
            else:
                self._send(404, "text/plain", b"there are /healthz, /readyz and /metrics\n")

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Probes are no news."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
