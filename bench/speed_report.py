"""Turns what `bench.speed` measured into results.json, table.md, speed.png and a verdict on the bars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {
    "palate": "Palate",
    "plain": "FastAPI + SentenceTransformer + Chroma",
    "serve": "Ray Serve, default proxy, a deployment per phase",
    "bare": "bare loop, batches of 32 (limit)",
}
TIMES_PLAIN = 10.0
RATIO_OF_BARE = 0.45
EXTRA_MS = 4.0


def save(result: dict[str, Any], folder: Path) -> str:
    """Writes the three files into `folder`; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {**result, "bars": bars(result["systems"])}
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = table(result)
    (folder / "table.md").write_text(text, encoding="utf-8")
    plot(result, folder / "speed.png")
    return f"{text}\nSaved in {folder}: results.json, table.md, speed.png"


def bars(systems: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar that can be judged from what was measured: what it asks, the figure, whether it is met."""
    judged: list[dict[str, Any]] = []
    points = systems.get("palate", {}).get("points", {})

    def judge(asks: str, figure: float, met: bool) -> None:
        judged.append({"asks": asks, "figure": round(figure, 3), "met": met})

    for connections in ("32", "64"):
        if connections not in points:
            continue
        qps = points[connections]["qps"]
        if (plain := systems.get("plain", {}).get("points", {}).get(connections)) and plain["qps"]:
            ratio = qps / plain["qps"]
            judge(f"{connections} connections: {TIMES_PLAIN:g} times the plain server", ratio, ratio >= TIMES_PLAIN)
        if bare := systems.get("bare"):
            ratio = qps / bare["qps"]
            judge(f"{connections} connections: {RATIO_OF_BARE:.0%} of the bare loop", ratio, ratio >= RATIO_OF_BARE)
    if "1" in points and (bare := systems.get("bare")):
        extra = points["1"]["p50_ms"] - bare["p50_ms"]
        judge(f"1 connection: p50 within {EXTRA_MS:g} ms of the bare loop", extra, extra <= EXTRA_MS)
    if points:
        errors = sum(sum(point["errors"].values()) for point in points.values())
        judge("no errors", errors, errors == 0)
    return judged


def table(result: dict[str, Any]) -> str:
    systems, machine, settings = result["systems"], result["machine"], result["settings"]
    lines = [
        f"{settings['queries']} queries over {settings['items']} items, {settings['seconds']} s a point, "
        f"query caches off; {machine['cores']} cores of {machine['cpu']}, "
        f"commit {machine['commit']}, {machine['when']}.",
        "",
        "| system | connections | queries/s | p50 ms | p99 ms | errors | x plain | of bare | memory MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("palate", "serve", "plain"):
        for connections, point in systems.get(name, {}).get("points", {}).items():
            lines.append(_row(name, connections, point, systems))
    if bare := systems.get("bare"):
        lines.append(
            f"| {TITLES['bare']} | - | {bare['qps']:.0f} | {bare['p50_ms']:.1f} (one query) | {bare['p99_ms']:.1f} "
            f"| - | - | 1.00 | {bare['peak_rss_bytes'] / 1e6:.0f} |"
        )
    lines.append("")
    lines += [f"- {'met' if bar['met'] else 'MISSED'}: {bar['asks']} ({bar['figure']:g})" for bar in result["bars"]]
    return "\n".join(lines) + "\n"


def _row(name: str, connections: str, point: dict[str, Any], systems: dict[str, Any]) -> str:
    plain = systems.get("plain", {}).get("points", {}).get(connections)
    bare = systems.get("bare")
    times_plain = f"{point['qps'] / plain['qps']:.1f}" if plain and plain["qps"] else "-"
    of_bare = f"{point['qps'] / bare['qps']:.2f}" if bare else "-"
    return (
        f"| {TITLES[name]} | {connections} | {point['qps']:.0f} | {point['p50_ms']:.1f} | {point['p99_ms']:.1f} | "
        f"{sum(point['errors'].values())} | {times_plain} | {of_bare} | {systems[name]['peak_rss_bytes'] / 1e6:.0f} |"
    )


def plot(result: dict[str, Any], file: Path) -> None:
    systems = result["systems"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in ("palate", "serve", "plain"):
        points = systems.get(name, {}).get("points", {})
        if not points:
            continue
        connections = [int(c) for c in points]
        axes[0].plot(connections, [p["qps"] for p in points.values()], marker="o", label=TITLES[name])
        axes[1].plot(connections, [p["p99_ms"] for p in points.values()], marker="o", label=TITLES[name])
    if bare := systems.get("bare"):
        axes[0].axhline(bare["qps"], color="grey", linestyle="--", label=TITLES["bare"])
    for axis, title in zip(axes, ("queries per second", "p99 latency, ms"), strict=True):
        axis.set(title=title, xlabel="connections", xscale="log", yscale="log")
        axis.set_xticks(list(result["settings"]["connections"]), list(map(str, result["settings"]["connections"])))
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)
