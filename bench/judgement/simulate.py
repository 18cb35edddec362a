"""Runs many made-up rollouts through the shipped `registry.analysis.Analysis` and through its peers.

Peeking is continuous: the analysis looks at its evidence after every pair of requests, however many were added at once,
and says after how many it failed. So a rollout is added in large pieces, and a false rollback at any request counts.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench.judgement.peers import FIXED, KAYENTA, FixedLimits, kayenta_found_after
from bench.judgement.streams import FAULTY, REWARD_RANGE, SOUND, ArmStream, Scenario, Streams
from registry.analysis import Analysis
from registry.plan import Guards, LatencyGuard, RolloutPlan

PALATE = "palate"
PIECE = 2000
BATCH = 25
QUIET_ROLLOUTS = 2000
"""To set the peers' limits by; other streams than those that are judged."""
PEER_HORIZON = 6000
"""Canary requests after which a peer has not found it: 200 minutes of the traffic assumed."""
FAULTY_SHARE = 0.1
"""Rollouts with a fault, for each one without."""


def plan() -> RolloutPlan:
    """The default plan, but for latency: 10 % may be lost, and nothing is too small to count."""
    sharp = {name: LatencyGuard(margin=0.1, pass_margin=1.0, slack_ms=0.0) for name in ("p50", "p95", "p99")}
    return RolloutPlan(guards=Guards(**sharp))


@dataclass(frozen=True)
class Batch:
    scenario: Scenario
    rollouts: range
    seed: int
    peers: tuple[FixedLimits, ...]


@dataclass(frozen=True)
class Found:
    """One rollout: by whom it was failed, after how many canary requests; None: it was not."""

    after: dict[str, int | None]
    guard: str | None


def run_batch(batch: Batch) -> list[Found]:
    return [_rollout(batch, number) for number in batch.rollouts]


def _rollout(batch: Batch, number: int) -> Found:
    scenario = batch.scenario
    index = [s.name for s in (*SOUND, *FAULTY)].index(scenario.name)
    streams = Streams(scenario, (batch.seed, index, number))
    seen: list[tuple[ArmStream, ArmStream]] = []
    analysis, after, guard, made = Analysis(plan(), REWARD_RANGE), None, None, 0
    peer_horizon = min(PEER_HORIZON, scenario.horizon)
    while made < scenario.horizon and (after is None or made < peer_horizon):
        size = min(PIECE, scenario.horizon - made)
        canary, control = streams.next(size)
        seen.append((canary, control))
        made += size
        if after is None:
            for arm, stream in (("canary", canary), ("control", control)):
                analysis.add(arm, stream.latencies_ms, stream.outcomes.tobytes().decode())  # type: ignore[arg-type]
                analysis.add_rewards(arm, stream.rewards)  # type: ignore[arg-type]
            after, guard = first_failure(analysis)
    canary, control = _joined([c for c, _ in seen], peer_horizon), _joined([k for _, k in seen], peer_horizon)
    found = {peer.name: peer.found_after(canary) for peer in batch.peers}
    return Found({PALATE: after, **found, KAYENTA: kayenta_found_after(canary, control)}, guard)


def first_failure(analysis: Analysis) -> tuple[int | None, str | None]:
    failed = [(g.failed_after, g.name) for g in analysis.verdict().guards if g.failed_after is not None]
    return min(failed, default=(None, None))


def _joined(pieces: Sequence[ArmStream], size: int) -> ArmStream:
    return ArmStream(
        np.concatenate([piece.outcomes for piece in pieces])[:size],
        np.concatenate([piece.latencies_ms for piece in pieces])[:size],
        np.concatenate([piece.rewards for piece in pieces])[:size],
    )


def calibrated(seed: int, rollouts: int) -> tuple[FixedLimits, ...]:
    quiet = [Streams(SOUND[0], (seed, len(SOUND) + len(FAULTY), n)).next(SOUND[0].horizon)[0] for n in range(rollouts)]
    return tuple(peer.calibrate(quiet) for peer in FIXED)


def simulate(rollouts: int, seed: int, processes: int) -> dict[str, Any]:
    """Of each scenario what each system did, as JSON-able values."""
    peers = calibrated(seed, min(QUIET_ROLLOUTS, max(200, rollouts)))
    batches = list(_batches(rollouts, seed, peers))
    results: dict[str, list[Found]] = {s.name: [] for s in (*SOUND, *FAULTY)}
    context = multiprocessing.get_context("spawn")
    with (
        Progress(console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        bar = progress.add_task("rollouts", total=sum(len(b.rollouts) for b in batches))
        running = {pool.submit(run_batch, batch): batch for batch in batches}
        for done in as_completed(running):
            results[running[done].scenario.name] += done.result()
            progress.advance(bar, len(running[done].rollouts))
    limits = {p.name: {"p95_ms": round(p.p95_ms, 1), "reward": round(p.reward, 3)} for p in peers}
    return {
        "peer_limits": limits,
        "sound": {s.name: _false_rollbacks(s, results[s.name]) for s in SOUND},
        "faulty": {s.name: _detection(s, results[s.name]) for s in FAULTY},
    }


def _batches(rollouts: int, seed: int, peers: tuple[FixedLimits, ...]) -> Iterator[Batch]:
    """Longest first, so that no process is left alone with one at the end."""
    for scenario in sorted((*SOUND, *FAULTY), key=lambda s: -s.horizon):
        count = rollouts if scenario.sound else max(20, int(rollouts * FAULTY_SHARE * scenario.share))
        for start in range(0, count, BATCH):
            yield Batch(scenario, range(start, min(start + BATCH, count)), seed, peers)


def _false_rollbacks(scenario: Scenario, found: Sequence[Found]) -> dict[str, Any]:
    """Share of rollouts that were failed, with the exact (Clopper-Pearson) 95 % interval."""
    from scipy.stats import binomtest

    systems = {}
    for name in found[0].after:
        failed = sum(one.after[name] is not None for one in found)
        interval = binomtest(failed, len(found)).proportion_ci(0.95)
        systems[name] = {"failed": failed, "ratio": failed / len(found), "low": interval.low, "high": interval.high}
    return {"title": scenario.title, "rollouts": len(found), "requests": scenario.horizon, "systems": systems}


def _detection(scenario: Scenario, found: Sequence[Found]) -> dict[str, Any]:
    systems = {}
    for name in found[0].after:
        after = np.array([np.inf if (n := one.after[name]) is None else n for one in found])
        p50, p90 = (_finite(q) for q in np.quantile(after, [0.5, 0.9], method="higher"))
        horizon = scenario.horizon if name == PALATE else min(PEER_HORIZON, scenario.horizon)
        systems[name] = {"median": p50, "p90": p90, "found": float(np.isfinite(after).mean()), "horizon": horizon}
    guards = [one.guard for one in found if one.guard is not None]
    by = {guard: guards.count(guard) for guard in sorted(set(guards), key=lambda g: -guards.count(g))}
    return {"title": scenario.title, "rollouts": len(found), "systems": systems, "guards": by}


def _finite(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None
