"""Tokens a second and the time to the first token: Palate's endpoint beside a bare vLLM server, on the same model, with
the same arguments and the same load. `scripts/bench generation` calls it.

vllm: `python -m vllm.entrypoints.openai.api_server`. palate: `palate up` with an app whose language model it is, asked
as `APP:base`, so that nothing but the model answers. The load is vLLM's own `vllm bench serve`, which knows neither.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.data import ROOT
from bench.machine import describe
from bench.processes import BenchError, Server, running
from registry.net import free_port
from serving.generate.engine_spec import engine_arguments, engine_environment
from serving.schema import LanguageModelSpec

APP = "bench-generation"
OUTPUT_RATIO = 0.9
FIRST_TOKEN_MS = 15.0
LONGEST = 1024
TITLES = {"vllm": "bare vLLM server", "palate": "Palate"}


@dataclass(frozen=True, slots=True)
class Load:
    """`connections`: one measurement each, of so many `rounds` of requests."""

    model: Path
    connections: tuple[int, ...] = (1, 8, 32)
    input_tokens: int = 64
    output_tokens: int = 64
    rounds: int = 8
    seed: int = 1


def report(load: Load, out: Path) -> str:
    """Measure, write results into `out`, return the table. Raises BenchError."""
    if not (load.model / "config.json").is_file():
        raise BenchError(
            f"{load.model} holds no model in Hugging Face format: name one with --model, or make the small one with "
            "`palate models build tiny`"
        )
    spec = LanguageModelSpec(model=str(load.model.resolve()), max_model_len=LONGEST)
    result: dict[str, Any] = {"machine": describe(), "systems": {}}
    with tempfile.TemporaryDirectory(prefix="palate-bench-") as name:
        for system, server_of in SERVERS.items():
            result["systems"][system] = _measure(system, server_of(Path(name), spec), load, Path(name))
    result["bars"] = bars(result["systems"])
    text = table(result, load)
    out.mkdir(parents=True, exist_ok=True)
    (out / "generation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "generation.md").write_text(text, encoding="utf-8")
    return f"{text}\nSaved in {out}: generation.json, generation.md"


# --- the systems


def _vllm(_: Path, spec: LanguageModelSpec) -> Server:
    port = free_port()
    flags = [part for name, value in engine_arguments(spec).items() for part in _flag(name, value)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", spec.model]
    command += ["--served-model-name", f"{APP}:base", "--host", "127.0.0.1", "--port", str(port), *flags]
    environment = {**engine_environment(spec, spec.model), "OPENAI_API_KEY": ""}
    return Server(command, f"http://127.0.0.1:{port}/v1/completions", env=environment)


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else [f"--no-{flag[2:]}"]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def _palate(folder: Path, spec: LanguageModelSpec) -> Server:
    app, home, port = folder / "app", folder / "home", free_port()
    app.mkdir()
    item = {"id": "1", "fields": {"name": "an item that nobody asks for"}, "attributes": {}}
    (app / "items.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    about = {
        "name": APP,
        "items": {"source": "items.jsonl", "text": ["name"]},
        "retrieve": {"sources": {"words": {"engine": "lexical"}}},
        "language_model": {"model": spec.model, "max_model_len": spec.max_model_len},
        "deadline_s": 120,
    }
    (app / "app.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    palate = str(Path(sys.executable).parent / "palate")
    ports = ["--port", str(port), "--mlflow-port", str(free_port())]
    return Server(
        [palate, "up", "--app", str(app), "--home", str(home), *ports, "--detach"],
        f"http://127.0.0.1:{port}/v1/completions",
        detached=True,
        stop=[palate, "down", "--home", str(home)],
        key_file=home / "api-key",
        ready_timeout_s=600.0,
    )


SERVERS: dict[str, Callable[[Path, LanguageModelSpec], Server]] = {"vllm": _vllm, "palate": _palate}


# --- the load


def _measure(system: str, server: Server, load: Load, folder: Path) -> dict[str, Any]:
    first = json.dumps({"model": f"{APP}:base", "prompt": "a", "max_tokens": 4}).encode()
    points: dict[str, Any] = {}
    with running(server, folder / f"{system}.log", first):
        for connections in load.connections:
            _drive(server, load, connections, folder, connections)  # a warm-up
            point = _drive(server, load, connections, folder, connections * load.rounds)
            points[str(connections)] = point
            print(
                f"{TITLES[system]}, {connections} connections: {point['tokens_per_s']:.0f} tokens/s, first token "
                f"{point['first_token_ms']:.1f} ms",
                file=sys.stderr,
            )
    return points


def _drive(server: Server, load: Load, connections: int, folder: Path, prompts: int) -> dict[str, Any]:
    file = folder / "client.json"
    command = [
        sys.executable, "-m", "bench.vllm_client", "--backend", "openai", "--endpoint", "/v1/completions",
        "--base-url", server.url.removesuffix("/v1/completions"), "--model", f"{APP}:base",
        "--tokenizer", str(load.model), "--dataset-name", "random", "--random-input-len", str(load.input_tokens),
        "--random-output-len", str(load.output_tokens), "--num-prompts", str(prompts), "--temperature", "0",
        "--max-concurrency", str(connections), "--seed", str(load.seed + connections), "--disable-tqdm",
        "--save-result", "--result-dir", str(folder), "--result-filename", file.name,
    ]  # fmt: skip
    if key := server.key():
        command += ["--header", f"Authorization=Bearer {key}"]
    env = {**os.environ, "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        raise BenchError(f"{' '.join(command[1:4])} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    said = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    if said["completed"] != prompts:
        raise BenchError(f"{prompts - said['completed']} of {prompts} requests failed: {str(said.get('errors'))[:500]}")
    return {
        "requests": prompts,
        "tokens_per_s": said["output_throughput"],
        "output_tokens": said["total_output_tokens"],
        "first_token_ms": said["median_ttft_ms"],
        "first_token_p99_ms": said["p99_ttft_ms"],
        "per_token_ms": said["median_tpot_ms"],
        "took_s": time.monotonic() - began,
    }


# --- the verdict


def bars(systems: dict[str, Any]) -> list[dict[str, Any]]:
    """What each bar asks, the figure, whether it is met."""
    judged = []
    for connections, palate in systems["palate"].items():
        bare = systems["vllm"][connections]
        ratio = palate["tokens_per_s"] / bare["tokens_per_s"]
        later = palate["first_token_ms"] - bare["first_token_ms"]
        where = f"{connections} connections: "
        judged += [
            _bar(f"{where}{OUTPUT_RATIO:.0%} of bare vLLM's tokens/s", ratio, ratio >= OUTPUT_RATIO),
            _bar(f"{where}first token {FIRST_TOKEN_MS:g} ms after bare vLLM's", later, later <= FIRST_TOKEN_MS),
        ]
    return judged


def _bar(asks: str, figure: float, met: bool) -> dict[str, Any]:
    return {"asks": asks, "figure": figure, "met": met}


def table(result: dict[str, Any], load: Load) -> str:
    machine = result["machine"]
    lines = [
        f"{load.model.name}: prompts of {load.input_tokens} tokens, answers of {load.output_tokens}; "
        f"{machine['cores']} cores of {machine['cpu']}, load before {machine['load_before']}, commit "
        f"{machine['commit']}, {machine['when']}.",
        "",
        "| system | connections | output tokens/s | first token, median ms | p99 | ms per further token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for system, points in result["systems"].items():
        for connections, point in points.items():
            lines.append(
                f"| {TITLES[system]} | {connections} | {point['tokens_per_s']:.0f} | {point['first_token_ms']:.1f} | "
                f"{point['first_token_p99_ms']:.1f} | {point['per_token_ms']:.2f} |"
            )
    lines.append("")
    lines += [f"- {'met' if bar['met'] else 'MISSED'}: {bar['asks']} ({bar['figure']:.2f})" for bar in result["bars"]]
    return "\n".join(lines) + "\n"
