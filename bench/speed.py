"""One query endpoint, four ways, one after another on the same machine with the same queries: `scripts/bench speed`.

palate: `palate up` with the query cache off. plain: `bench.plain_server`. serve: `bench.serve_default`. bare:
`bench.bare_loop`, the limit. `bench.speed_report` turns the result into a table, a plot and a verdict on the bars.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data import DEFAULT_QUERIES, ITEMS, ROOT, load_queries, write_bodies
from bench.machine import describe
from bench.processes import BenchError, MemoryWatch, Server, post, running
from registry.net import free_port

SYSTEMS = ("bare", "plain", "serve", "palate")
WARM_UP_S = 3
SETTLE_S = 1
PALATE = str(Path(sys.executable).parent / "palate")


@dataclass(frozen=True)
class Settings:
    seconds: int = 10
    connections: tuple[int, ...] = (1, 8, 32, 64)
    systems: tuple[str, ...] = SYSTEMS
    queries: Path = DEFAULT_QUERIES


def measure(settings: Settings) -> dict[str, Any]:
    """Everything that was measured, as JSON-able values. Raises BenchError when a part cannot run."""
    if not settings.queries.is_file():
        raise BenchError(f"there is no {settings.queries}: it is the evaluation set of examples/wine-orders")
    if shutil.which("wrk") is None and set(settings.systems) - {"bare"}:
        raise BenchError("wrk is not installed: apt-get install wrk")
    machine = describe()
    if machine["load_before"] > 0.5:
        _say(f"the machine is busy (load {machine['load_before']}): the figures will be worse than it can do")
    queries = load_queries(settings.queries)
    systems: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="palate-bench-") as name:
        folder = Path(name)
        bodies = folder / "bodies.jsonl"
        write_bodies(queries, bodies)
        for system in settings.systems:
            _say(f"{system}: starting")
            if system == "bare":
                systems[system] = _measure_bare(settings, folder / system)
            else:
                server = SERVERS[system](folder / system)
                systems[system] = _measure_server(server, settings, bodies, folder / f"{system}.log")
    return {
        "machine": machine,
        "settings": {
            "seconds": settings.seconds,
            "connections": settings.connections,
            "queries": len(queries),
            "items": sum(1 for _ in ITEMS.open(encoding="utf-8")),
        },
        "systems": systems,
    }


def _measure_bare(settings: Settings, component: Path) -> dict[str, Any]:
    _python("bench.export_component", str(component))
    said = _python("bench.bare_loop", str(component), str(settings.queries), str(settings.seconds))
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    _say(f"bare: {result['qps']:.0f} queries/s in batches, one query {result['p50_ms']:.2f} ms")
    return result


def _python(*arguments: str) -> str:
    """What the module printed."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _measure_server(server: Server, settings: Settings, bodies: Path, log: Path) -> dict[str, Any]:
    first = bodies.read_bytes().split(b"\n")[0]
    began = time.monotonic()
    points: dict[str, Any] = {}
    with running(server, log, first) as mark:
        ready_s = time.monotonic() - began
        _check_answer(server, first)
        with MemoryWatch(mark) as memory:
            for connections in settings.connections:
                _load(server, bodies, connections, WARM_UP_S)
                time.sleep(SETTLE_S)  # what the warm-up left in queues is not this measurement's
                point = _load(server, bodies, connections, settings.seconds)
                points[str(connections)] = point
                _say(
                    f"  {connections:3d} connections: {point['qps']:7.0f} queries/s, p50 {point['p50_ms']:.1f} ms, "
                    f"p99 {point['p99_ms']:.1f} ms, {sum(point['errors'].values())} errors"
                )
    return {
        "ready_s": ready_s,
        "points": points,
        "peak_rss_bytes": memory.peak_bytes,
        "processes": memory.processes,
    }


def _check_answer(server: Server, body: bytes) -> None:
    """A fast server that answers nothing would win: it must return the results it was asked for."""
    answer = json.loads(post(server.url, body, server.key()))
    wanted = json.loads(body)["top_k"]
    if len(answer.get("results", [])) != wanted:
        raise BenchError(f"{server.url} answered {len(answer.get('results', []))} results instead of {wanted}")


def _load(server: Server, bodies: Path, connections: int, seconds: int) -> dict[str, Any]:
    env = {"BENCH_BODIES": str(bodies), "PATH": "/usr/bin:/bin"} | ({"BENCH_KEY": k} if (k := server.key()) else {})
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"]
    command += ["-s", str(ROOT / "bench" / "query.lua"), server.url]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise BenchError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    point: dict[str, Any] = json.loads(lines[-1])
    return {"qps": point["requests"] / point["duration_s"], **point}


def _plain(folder: Path) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench.plain_server:app", "--port", str(port), "--no-access-log"]
    return Server(command, f"http://127.0.0.1:{port}/query", env={"BENCH_FOLDER": str(folder)})


def _serve(folder: Path) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "bench.serve_default", str(port)]
    return Server(command, f"http://127.0.0.1:{port}/query", env={"BENCH_FOLDER": str(folder)})


def _palate(folder: Path) -> Server:
    app, home = folder / "app", folder / "home"
    port, mlflow_port = free_port(), free_port()
    shutil.copytree(ROOT / "bench" / "app", app)
    shutil.copy(ITEMS, app / ITEMS.name)
    command = [PALATE, "up", "--home", str(home), "--app", str(app), "--detach"]
    command += ["--port", str(port), "--mlflow-port", str(mlflow_port), "--no-learner"]
    return Server(
        command,
        f"http://127.0.0.1:{port}/v1/apps/bench/query",
        env={"PALATE_EMBEDDING_CACHE": "0"},
        detached=True,
        stop=[PALATE, "down", "--home", str(home)],
        key_file=home / "api-key",
    )


SERVERS: dict[str, Callable[[Path], Server]] = {"plain": _plain, "serve": _serve, "palate": _palate}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
