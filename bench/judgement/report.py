"""Turns what `bench.judgement.simulate` found into judgement.json, judgement.md, judgement.png and a verdict on the
bars."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.judgement.peers import TITLES, WINDOW
from bench.judgement.simulate import PALATE, simulate
from bench.machine import describe

SYSTEMS = {PALATE: "Palate"} | TITLES
STATED = 0.01
"""The default plan's `false_rollback_ratio`."""
WITHIN_REQUESTS = 100
EQUAL_ARMS = ("quiet", "troubled")
MARKERS = "oPsD^"
NONE_SEEN = 1e-4
"""Where the plot, whose axis has no 0, puts a rate of 0."""


def measured(rollouts: int, seed: int, processes: int) -> dict[str, Any]:
    """The simulation, and on what it ran."""
    machine, began = describe(), time.monotonic()
    return {
        **simulate(rollouts, seed, processes),
        "seed": seed,
        "machine": machine,
        "seconds": time.monotonic() - began,
    }


def save(result: dict[str, Any], folder: Path) -> str:
    """Writes the three files into `folder`; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {**result, "bars": bars(result)}
    (folder / "judgement.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = table(result)
    (folder / "judgement.md").write_text(text, encoding="utf-8")
    plot(result, folder / "judgement.png")
    return f"{text}\nSaved in {folder}: judgement.json, judgement.md, judgement.png"


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar: what it asks, the figure, whether it is met."""
    judged = []
    for name, scenario in result["sound"].items():
        ratio = scenario["systems"][PALATE]["ratio"]
        judged.append(
            {"asks": f"{name}: at most {STATED:.0%} false rollbacks", "figure": ratio, "met": ratio <= STATED}
        )
    median = result["faulty"]["error-10"]["systems"][PALATE]["median"]
    met = median is not None and median <= WITHIN_REQUESTS
    judged.append({"asks": f"error-10: found within {WITHIN_REQUESTS} requests", "figure": median, "met": met})
    better = quicker_and_as_safe(result)
    judged.append({"asks": "no peer is both quicker and as safe", "figure": better, "met": not better})
    return judged


def quicker_and_as_safe(result: dict[str, Any]) -> list[str]:
    """`peer: scenario` of each peer that finds a fault sooner than Palate, at the median, while it rolls back at most
    the stated share of releases that are no worse in every sound scenario (or no more of them than Palate)."""
    found = []
    for peer in TITLES:
        if all(_as_safe(scenario["systems"], peer) for scenario in result["sound"].values()):
            for name, scenario in result["faulty"].items():
                mine, theirs = (scenario["systems"][system]["median"] for system in (PALATE, peer))
                if theirs is not None and (mine is None or theirs < mine):
                    found.append(f"{peer}: {name}")
    return found


def _as_safe(systems: dict[str, Any], peer: str) -> bool:
    allowed: float = max(STATED, systems[PALATE]["ratio"])
    return bool(systems[peer]["ratio"] <= allowed)


def table(result: dict[str, Any]) -> str:
    sound, faulty, machine = result["sound"], result["faulty"], result["machine"]
    any_sound = next(iter(sound.values()))
    lines = [
        f"Made-up streams, seed {result['seed']}, {any_sound['rollouts']:,} rollouts of {any_sound['requests']:,} "
        "canary requests for each false-rollback rate (with its 95 % interval), looked at after every pair; "
        f"{machine['cores']} cores of {machine['cpu']}, {result['seconds']:.0f} s, commit {machine['commit']}, "
        f"{machine['when']}. Plan: the default, with latency margins of 0.1 and no slack.",
        "",
        "False rollbacks:",
        "",
        _row(["", *SYSTEMS.values()]),
        _row(["---", *("---:" for _ in SYSTEMS)]),
    ]
    for scenario in sound.values():
        lines.append(_row([scenario["title"], *(_ratio(scenario["systems"][s]) for s in SYSTEMS)]))
    lines += ["", "Canary requests until a fault is found, median (90th percentile):", ""]
    lines += [_row(["", *SYSTEMS.values(), "found by"]), _row(["---", *("---:" for _ in SYSTEMS), "---"])]
    for scenario in faulty.values():
        by = ", ".join(f"{guard} {count / scenario['rollouts']:.0%}" for guard, count in scenario["guards"].items())
        lines.append(_row([scenario["title"], *(_after(scenario["systems"][s]) for s in SYSTEMS), by]))
    limits = "; ".join(
        f"{SYSTEMS[peer]}: p95 {its['p95_ms']:g} ms, reward {its['reward']:g}"
        for peer, its in result["peer_limits"].items()
    )
    lines += ["", f"The peers see {WINDOW} canary requests a minute. Limits they were given: {limits}.", ""]
    lines += [
        f"- {'met' if bar['met'] else 'MISSED'}: {bar['asks']} ({_figure(bar['figure'])})" for bar in result["bars"]
    ]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(system: dict[str, Any]) -> str:
    return f"{system['ratio']:.2%} ({system['low']:.2%} to {system['high']:.2%})"


def _after(system: dict[str, Any]) -> str:
    median, p90 = (f"> {system['horizon']:,}" if n is None else f"{n:,}" for n in (system["median"], system["p90"]))
    return f"{median} ({p90})"


def _figure(figure: Any) -> str:
    if isinstance(figure, list):
        return ", ".join(figure) or "none"
    return f"{figure:.2%}" if isinstance(figure, float) else str(figure)


def plot(result: dict[str, Any], file: Path) -> None:
    """Speed against safety: worst false-rollback rate of equal arms over the median, one panel per fault."""
    faulty = result["faulty"]
    figure, grid = plt.subplots(
        2, (len(faulty) + 1) // 2, figsize=(14, 7), layout="constrained", sharex=True, sharey=True
    )
    for axis, scenario in zip(grid.flat, faulty.values(), strict=False):
        for place, (system, title) in enumerate(SYSTEMS.items()):
            worst = max(result["sound"][name]["systems"][system]["ratio"] for name in EQUAL_ARMS)
            its = scenario["systems"][system]
            found = its["median"] is not None
            axis.scatter(
                its["median"] if found else its["horizon"],
                max(worst, NONE_SEEN),
                marker=MARKERS[place] if found else "$\u2192$",
                s=110,
                color=f"C{place}",
                label=title,
            )
        axis.axhline(STATED, color="grey", linestyle="--", linewidth=1)
        axis.set(title=scenario["title"], xscale="log", yscale="log", ylim=(NONE_SEEN / 2, 1.8))
        axis.grid(alpha=0.3)
    for axis in grid[-1]:
        axis.set_xlabel("canary requests, median (arrow: not found)")
    for axis in grid[:, 0]:
        axis.set_ylabel("false rollbacks, worst A/A")
    marks = [
        plt.Line2D([], [], marker=MARKERS[n], color=f"C{n}", linestyle="", markersize=9, label=title)
        for n, title in enumerate(SYSTEMS.values())
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9)
    figure.savefig(file, dpi=130)
    plt.close(figure)
