"""The benchmark's own honesty: bars are judged as they are written, and a measured server leaves nothing behind."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.data import load_queries, write_bodies
from bench.processes import BenchError, MemoryWatch, Server, marked, post, running
from bench.speed_report import bars, save
from registry.net import free_port

SERVER = """
import http.server, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body + self.headers.get("Authorization", "").encode())

if "--detach" in sys.argv:
    subprocess.Popen([sys.executable, __file__, sys.argv[1]], start_new_session=True)
else:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def point(qps: float, p50_ms: float, status_errors: int = 0) -> dict[str, Any]:
    return {"qps": qps, "p50_ms": p50_ms, "p99_ms": 2 * p50_ms, "errors": {"status": status_errors, "read": 0}}


def systems(palate_qps: float, palate_p50_ms: float, errors: int = 0) -> dict[str, Any]:
    counts = ("1", "32", "64")
    served = {"peak_rss_bytes": 1, "processes": 1, "ready_s": 1.0}
    return {
        "bare": {"qps": 1000.0, "p50_ms": 1.0, "p99_ms": 2.0, "peak_rss_bytes": 1},
        "plain": {**served, "points": {c: point(50.0, 20.0) for c in counts}},
        "palate": {**served, "points": {c: point(palate_qps, palate_p50_ms, errors) for c in counts}},
    }


@pytest.fixture
def server_file(tmp_path: Path) -> Path:
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    return file


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        (systems(500.0, 5.0), []),
        (systems(499.0, 5.0), ["10 times", "10 times"]),
        (systems(440.0, 5.0), ["10 times", "45%", "10 times", "45%"]),
        (systems(500.0, 5.1), ["within 4 ms"]),
        (systems(500.0, 5.0, errors=1), ["no errors"]),
    ],
)
def test_bars_are_judged_as_they_are_written(measured: dict[str, Any], missed: list[str]) -> None:
    judged = bars(measured)
    assert len(judged) == 6
    found = [bar["asks"] for bar in judged if not bar["met"]]
    assert len(found) == len(missed)
    assert all(part in asks for part, asks in zip(missed, found, strict=True))


def test_results_are_saved_as_json_table_and_plot(tmp_path: Path) -> None:
    machine = {"cores": 2, "cpu": "a made-up CPU", "commit": "none", "when": "never"}
    settings = {"queries": 3, "items": 2, "seconds": 1, "connections": (1, 32, 64)}
    text = save({"machine": machine, "settings": settings, "systems": systems(400.0, 5.0)}, tmp_path / "out")
    assert "| Palate | 32 | 400 | 5.0 | 10.0 | 0 | 8.0 | 0.40 |" in text
    assert "MISSED: 32 connections: 10 times the plain server (8)" in text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["bars"][0]["met"] is False
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_queries_are_distinct_and_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps({"query": q}) + "\n" for q in ("a", "두 병", "a", "b\nc")))
    assert load_queries(file) == ["a", "두 병"]
    write_bodies(["두 병"], tmp_path / "bodies")
    assert json.loads((tmp_path / "bodies").read_text()) == {"query": "두 병", "top_k": 10}


@pytest.mark.parametrize("detached", [False, True])
def test_a_server_is_found_and_ended_even_if_it_detached(server_file: Path, tmp_path: Path, detached: bool) -> None:
    port = free_port()
    key_file = tmp_path / "key"
    key_file.write_text("secret\n")
    command = [sys.executable, str(server_file), str(port)] + (["--detach"] if detached else [])
    server = Server(command, f"http://127.0.0.1:{port}/", detached=detached, key_file=key_file)
    with running(server, tmp_path / "log", b"hello") as mark:
        assert post(server.url, b"hello", server.key()) == b"helloBearer secret"
        with MemoryWatch(mark) as memory:
            while not memory.peak_bytes:
                time.sleep(0.01)
        assert memory.processes == 1
    assert marked(mark) == []


def test_a_server_that_ends_shows_its_last_words(server_file: Path, tmp_path: Path) -> None:
    server = Server([sys.executable, str(server_file), "no-port"], "http://127.0.0.1:9/")
    with pytest.raises(BenchError, match="invalid literal"), running(server, tmp_path / "log", b""):
        pass
