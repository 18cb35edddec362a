"""How long a bad canary keeps its traffic: `scripts/bench rollback`.

On a running `wine-orders`, at 50 queries a second and a canary share of 25 %: each scenario publishes a release, sets
the alias `canary`, lets it serve well for some seconds and then breaks it. Measured from the first failing canary
answer to the last canary request, by the evidence that routers wrote (in steps of its interval, rounded up), with the
queries whose users got no answer.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import BenchError
from bench.rollouts import WORSE
from bench.traffic import LiveTraffic, load_cases
from bench.wine_orders import APP, CASES, Bench, wine_orders
from registry.traffic import FAILURES, Evidence

RATE_PER_S = 50.0
SHARE_PERCENT = 25.0
HEALTHY_QUERIES = 60
FLUSH_S = 0.25
"""How often routers write evidence: the resolution of what is measured."""

PLAN: dict[str, Any] = {
    "rollout.steps_percent": [SHARE_PERCENT],
    # A step that nothing passes: the canary stays until it is rolled back.
    "rollout.step": {"min_requests": 1_000_000, "min_s": 0, "deadline_s": 3600},
    "rollout.bake_s": 0,
    "rollout.guards.reward.window_s": 2,
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`drill` and `changes` make the release; `strike` breaks what runs (or moves the alias); `first_bad` finds the
    first bad answer among the canary's evidence, None: the moment of the strike counts."""

    name: str
    drill: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    strike: Callable[[Bench, int], None] | None = None
    bad: Callable[[Evidence], bool] | None = None
    bar_s: float | None = 5.0


def _failing(block: Evidence) -> bool:
    return any(outcome in FAILURES for outcome in block.block.outcomes)


def _slow(block: Evidence) -> bool:
    return any(ms > 250 for ms in block.block.latencies_ms)


def _signal(number: signal.Signals) -> Callable[[Bench, int], None]:
    def strike(bench: Bench, rollout: int) -> None:
        found = bench.rollouts.arm_processes(rollout)
        if not found:
            raise BenchError(f"no process of {APP}-r{rollout}-canary was found")
        for process in found:
            os.kill(process.pid, number)

    return strike


def _remove_alias(bench: Bench, _: int) -> None:
    bench.store.delete_alias(APP, "canary")


SCENARIOS = (
    Scenario("errors", {"fail_ratio": 1, "after": HEALTHY_QUERIES}, bad=_failing),
    Scenario("slowness", {"delay_ms": 500, "after": HEALTHY_QUERIES}, bad=_slow),
    Scenario("replica killed", strike=_signal(signal.SIGKILL), bad=_failing),
    Scenario("process hung", strike=_signal(signal.SIGSTOP), bad=_failing),
    Scenario("alias moved by hand", strike=_remove_alias),
    Scenario("low reward", changes=WORSE, bad=lambda _: True, bar_s=None),
)


def report(repeats: int, only: tuple[str, ...], out: Path) -> str:
    """Measures, saves rollback.json and rollback.md in `out`, and returns the table. Raises BenchError."""
    result = measure(repeats, only, lambda line: print(line, file=sys.stderr, flush=True))
    out.mkdir(parents=True, exist_ok=True)
    (out / "rollback.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (out / "rollback.md").write_text(table(result) + "\n", encoding="utf-8")
    return table(result)


def measure(repeats: int, only: tuple[str, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Runs every scenario `repeats` times on a platform of its own. Raises BenchError."""
    names = [scenario.name for scenario in SCENARIOS]
    if unknown := sorted(set(only) - set(names)):
        raise BenchError(f"there is no scenario {unknown}; there are {names}")
    chosen = [scenario for scenario in SCENARIOS if not only or scenario.name in only]
    results: dict[str, Any] = {}
    say("starting palate")
    with wine_orders() as bench:
        for scenario in chosen:
            runs = []
            for number in range(repeats):
                runs.append(_run(bench, scenario, number))
                say(f"{scenario.name} {number + 1}/{repeats}: {json.dumps(runs[-1])}")
            results[scenario.name] = _summary(scenario, runs)
    return {"rate_per_s": RATE_PER_S, "share_percent": SHARE_PERCENT, "repeats": repeats, "scenarios": results}


def _run(bench: Bench, scenario: Scenario, repeat: int) -> dict[str, Any]:
    about = {"description": f"{scenario.name}, number {repeat + 1}"}
    version = bench.rollouts.publish({**PLAN, **scenario.changes, **about}, scenario.drill)
    cases = load_cases(CASES)
    with LiveTraffic(bench.url, bench.key, APP, cases, rate_per_s=RATE_PER_S) as traffic:
        time.sleep(1)
        bench.rollouts.start(version)
        number = bench.rollouts.wait_for_phase(version, "step")
        struck_s = 0.0
        if scenario.strike is not None:
            time.sleep(4)
            struck_s = time.time()
            scenario.strike(bench, number)
        bench.rollouts.wait_for_end()
        time.sleep(2)  # requests under way end, and what they saw is written
    blocks = _canary_blocks(bench, number)
    if scenario.bad is None:
        first_bad_s = struck_s
    else:
        first_bad_s = min(b.block.at_s for b in blocks if scenario.bad(b) and b.block.at_s >= struck_s) - FLUSH_S
    return {
        "seconds": round(max(b.block.at_s for b in blocks) - first_bad_s, 2),
        "canary_requests": sum(len(b.block.outcomes) for b in blocks),
        "queries": len(traffic.samples),
        "failed": len(traffic.failed),
        "problems": sorted({f"{s.status} {s.problem[:200]}" for s in traffic.failed})[:3],
        "stable_after": bench.store.get(APP, "stable").version,
    }


def _canary_blocks(bench: Bench, number: int) -> list[Evidence]:
    cursor: dict[str, int] = {}
    blocks: list[Evidence] = []
    while page := bench.evidence.after(APP, number, cursor, 10_000):
        for one in page:
            cursor[one.router] = max(cursor.get(one.router, 0), one.seq)
        blocks += [one for one in page if one.arm == "canary" and one.block.outcomes]
    return blocks


def _summary(scenario: Scenario, runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "median_s": statistics.median(seconds),
        "worst_s": max(seconds),
        "bar_s": scenario.bar_s,
        "failed": sum(run["failed"] for run in runs),
        "queries": sum(run["queries"] for run in runs),
        "runs": runs,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"At {result['rate_per_s']:.0f} queries/s, {result['share_percent']:.0f} % to the canary, "
        f"{result['repeats']} runs of each:",
        "",
        "| what went wrong | median s | worst s | bar s | queries | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in result["scenarios"].items():
        bar = "" if one["bar_s"] is None else f"{one['bar_s']:g}"
        lines.append(
            f"| {name} | {one['median_s']:.2f} | {one['worst_s']:.2f} | {bar} | {one['queries']} | {one['failed']} |"
        )
    return "\n".join(lines)
