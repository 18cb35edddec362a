"""How soon a change of weights reaches every router replica: `scripts/bench steering`.

On a running `wine-orders` with several routers and 50 queries a second, a canary that is as good as stable rises in
many small steps. Of each change: the time from its row in the database, as seen from here, to the report of the last
router that follows it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.processes import BenchError
from bench.traffic import LiveTraffic, load_cases
from bench.wine_orders import APP, CASES, Bench, wine_orders

LIMIT_S = 180.0
LOOK_S = 0.01
STEPS = [float(percent) for percent in range(2, 42, 2)]
PLAN: dict[str, Any] = {
    "rollout.steps_percent": STEPS,
    "rollout.step": {"min_requests": 1, "min_s": 2, "deadline_s": 3600},
    "rollout.bake_s": 0,
    **{f"rollout.guards.{name}": None for name in ("p50", "p95", "p99", "abstained", "empty", "reward")},
    "rollout.guards.error": {"margin": 0.5, "pass_margin": 0.9},
}


def report(routers: int, out: Path) -> str:
    """Measures, saves steering.json in `out`, and returns one line. Raises BenchError."""
    print(f"starting palate with {routers} routers", file=sys.stderr, flush=True)
    with wine_orders("--replicas", str(routers)) as bench:
        result = _measure(bench, routers)
    out.mkdir(parents=True, exist_ok=True)
    (out / "steering.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    seconds = result["seconds"]
    return (
        f"{len(seconds)} changes of weight, {routers} routers: median {statistics.median(seconds):.2f} s, worst "
        f"{max(seconds):.2f} s until the last router followed; {result['failed']} of {result['queries']} queries failed"
    )


def _measure(bench: Bench, routers: int) -> dict[str, Any]:
    version = bench.rollouts.publish({**PLAN, "description": "as good as stable, in many steps"})
    with LiveTraffic(bench.url, bench.key, APP, load_cases(CASES)) as traffic:
        bench.rollouts.start(version)
        seconds = _watch(bench, routers)
    return {
        "routers": routers,
        "seconds": [round(s, 3) for s in seconds],
        "queries": len(traffic.samples),
        "failed": len(traffic.failed),
    }


def _watch(bench: Bench, routers: int) -> list[float]:
    """Of each change of weights after the arms were ready, how long the last router took to follow."""
    seconds: list[float] = []
    changed_at, generation, weights, following = 0.0, 0, 0.0, True
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        traffic = bench.board.traffic().get(APP)
        now = time.monotonic()
        if traffic is not None and traffic.generation != generation:
            if not following:
                raise BenchError(f"generation {generation} was replaced before every router had followed it")
            following = traffic.canary_percent == weights  # only a change of weights is timed
            changed_at, generation, weights = now, traffic.generation, traffic.canary_percent
            if traffic.canary is None and len(seconds) >= len(STEPS):
                return seconds
        if not following:
            reports = bench.board.routers(APP, time.time() - 5)
            if len(reports) >= routers and all(one.generation >= generation for one in reports):
                seconds.append(time.monotonic() - changed_at)
                following = True
        time.sleep(LOOK_S)
    raise BenchError(f"the rollout was not over after {LIMIT_S:.0f} s; changes seen: {len(seconds)}")
