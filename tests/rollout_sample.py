"""A made-up rollout: its journal and its evidence, for the tests of the story, the report and the admin routes.

`python -c "from tests.rollout_sample import write_report; write_report('report.html')"` writes its report to look at.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC
from functools import cache
from pathlib import Path
from typing import Any

from registry.analysis import Analysis, Verdict
from registry.plan import Guards, RolloutPlan
from registry.report import make_history, report_html
from registry.traffic import Block, Entry, Evidence, TrialArm

START_S = 1_795_000_000.0
APP, ROLLOUT, VERSION, BASE = "teas", 3, 7, 6
STEPS = ((8.0, 1.0), (128.0, 5.0), (248.0, 25.0))
BROKEN_S, ROLLED_BACK_S, LAST_S = 330.0, 332.4, 332.75
"""The first bad answer, the decision and the last canary request, in seconds after the start."""
REWARDS = (-0.5, 1.0)
PLAN = RolloutPlan(guards=Guards(reward=None))
ARMS: tuple[TrialArm, ...] = ("canary", "control")


def analysis() -> Analysis:
    return Analysis(PLAN, REWARDS)


def entry(after_s: float, kind: str, why: str, who: str = "controller", **details: Any) -> Entry:
    return Entry(APP, ROLLOUT, START_S + after_s, kind, who, why, VERSION, details, id=int(after_s * 10) + 1)


@cache
def evidence(rate_per_s: float = 50.0, seed: int = 7) -> tuple[Evidence, ...]:
    """Two routers' blocks, one per arm and quarter of a second: the canary gets a share of `rate_per_s` by step, as the
    control does; it fails four of five requests from BROKEN_S on. The control fails one in a thousand all the time."""
    draw = random.Random(seed)
    found: list[Evidence] = []
    for router in ("a", "b"):
        seq = 0
        for quarter in range(int(STEPS[0][0] * 4), int(LAST_S * 4) + 1):
            at = quarter / 4
            percent = [share for begin, share in STEPS if begin <= at][-1]
            count = sum(draw.random() < percent / 100 for _ in range(round(rate_per_s / 8)))
            # The moments that tests name are there whatever is drawn
            if not count and not (router == "a" and at in (BROKEN_S, LAST_S)):
                continue
            for arm in ARMS:
                seq += 1
                failing = 0.001 if arm == "control" else 0.8 if at >= BROKEN_S else 0.0
                block = _block(draw, START_S + at, max(count, 1), failing, first=at == BROKEN_S and arm == "canary")
                found.append(Evidence(APP, ROLLOUT, router, seq, arm, block))
    return tuple(found)


def _block(draw: random.Random, at_s: float, count: int, failing: float, *, first: bool) -> Block:
    outcomes = "".join("e" if draw.random() < failing else draw.choice("aaaaaaan") for _ in range(count))
    latencies = tuple(round(draw.lognormvariate(3.2, 0.35), 2) for _ in range(count))
    return Block(at_s, latencies, "e" + outcomes[1:] if first else outcomes, "0" * 8 * count)


def verdict_at(after_s: float) -> Verdict:
    judge = analysis()
    for one in sorted(evidence(), key=lambda e: e.block.at_s):
        if one.arm != "shadow" and one.block.at_s <= START_S + after_s:
            judge.add(one.arm, one.block.latencies_ms, one.block.outcomes)
    return judge.verdict()


@cache
def entries() -> tuple[Entry, ...]:
    """A canary that was fine until it broke at 25 percent."""
    told = [
        entry(0, "started", "Kim's <b>new</b> synonyms & prices", "kim (key local 1a2b3c)", base=BASE),
        entry(6.2, "ready", "both arms run, and every router knows them"),
    ]
    for number, (at, percent) in enumerate(STEPS, 1):
        verdict = verdict_at(at)
        why = f"step {number} of 4, {percent:g} %: {verdict.sentence}"
        told.append(entry(at, "step", why, percent=percent, phase="step", verdict=asdict(verdict)))
    verdict = verdict_at(ROLLED_BACK_S)
    told.append(
        entry(ROLLED_BACK_S, "rolled-back", verdict.sentence, verdict=asdict(verdict), percent=25, phase="step")
    )
    return tuple(told)


def report(of: Sequence[Entry] | None = None, seen: Sequence[Evidence] | None = None) -> str:
    history = make_history(entries() if of is None else of, evidence() if seen is None else seen, analysis)
    return report_html(history, UTC)


def write_report(file: str | Path) -> None:
    Path(file).write_text(report(), encoding="utf-8")
