"""Online learning, seen from outside: `python -m bench.taste_learning`.

On a running `coffee-taste`: the encoder is trained once, by hand, and a person promotes it. Then users taste: they send
records of their own (made up by `coffee.py` of the example, with another seed), like the coffee that they had, or say
which it was. When enough feedback is there an online update starts by itself from the encoder that serves; the gates
judge it, and its candidate goes on trial. Told: what the gates said, how long each part took, and that no query failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.data import ROOT
from bench.learning import changed_example, wait_for_run
from bench.processes import BenchError
from bench.rollouts import QUICK
from bench.traffic import Case, LiveTraffic, Users
from bench.wine_orders import Bench, wine_orders
from training.runs import Run, Runs

APP = "coffee-taste"
CATALOGUE_SEED, USERS_SEED, COFFEES = 7, 8, 300
NEW_EVENTS = 600
RATE_PER_S = 15.0
FIRST_LIMIT_S = 1800.0
CHANGES: dict[str, Any] = {**QUICK, "train.taste2vec.trigger": {"new_events": NEW_EVENTS}}


@dataclass(frozen=True, slots=True)
class Updated:
    """What came of the users' feedback. `status` and `why` are the run's; `version` its candidate, `rollout` the number
    of its trial, 0 for none; `first` what the gates said of the training by hand."""

    first: str
    status: str
    why: str
    version: int | None
    rollout: int
    seconds: Mapping[str, float]
    queries: int
    failed: int


def users() -> list[Case]:
    """Tastings by people whom no training has seen, of every coffee there is."""
    made = importlib.util.spec_from_file_location("coffee", ROOT / "examples" / APP / "coffee.py")
    assert made is not None
    assert made.loader is not None
    coffee = importlib.util.module_from_spec(made)
    sys.modules["coffee"] = coffee  # its dataclasses look themselves up there
    made.loader.exec_module(coffee)
    tastings = coffee.tastings(USERS_SEED, coffee.coffees(CATALOGUE_SEED, COFFEES))
    return [Case(one.query, frozenset({one.coffee.id}), one.record or None) for one in tastings]


def first_training(bench: Bench, runs: Runs, app: Path) -> str:
    """Train by hand and promote without evidence, as a person may. What the gates said. Raises BenchError."""
    environment = {**os.environ, "PALATE_HOME": str(bench.home)}
    command = [sys.executable, "-m", "serving.cli", "train", str(app), "--why", "the first training"]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=FIRST_LIMIT_S, check=False
    )
    [run] = runs.of(APP, 1)
    if done.returncode or run.version is None:
        raise BenchError(f"the first training ended with {done.returncode}: {done.stdout}{done.stderr}")
    version = run.version
    bench.rollouts.wait(lambda r: r.get("version") == version, "its trial", 60)
    bench.rollouts.act("promote")
    bench.rollouts.wait_for_end()
    if bench.rollouts.stable() != version:
        raise BenchError(f"version {version} was not promoted: {bench.rollouts.story(bench.rollouts.last())}")
    return _why(run)


def update(bench: Bench, runs: Runs, app: Path) -> Updated:
    first, began = first_training(bench, runs, app), time.monotonic()
    seconds: dict[str, float] = {}
    known, rollout = {run.id for run in runs.of(APP, 5)}, 0
    with LiveTraffic(
        bench.url, bench.key, APP, users(), rate_per_s=RATE_PER_S, users=Users("like", "dislike", correct=True)
    ) as traffic:
        wait_for_run(lambda: runs.of(APP, 5), lambda run: run.id not in known, "an update to start")
        seconds["until the update began"] = time.monotonic() - began
        run = wait_for_run(
            lambda: runs.of(APP, 5), lambda run: run.id not in known and run.ended_s is not None, "the update to end"
        )
        seconds["until it ended"] = time.monotonic() - began
        if run.status == "published" and run.version is not None:
            rollout = bench.rollouts.wait_for_phase(run.version, "step")
            seconds["until it was on trial"] = time.monotonic() - began
    return Updated(
        first, run.status, _why(run), run.version, rollout, {name: round(s, 1) for name, s in seconds.items()},
        len(traffic.samples), len(traffic.failed),
    )  # fmt: skip


def _why(run: Run) -> str:
    return run.error or str(run.outcome.get("gates", {}).get("why", ""))


def report(out: Path) -> str:
    """Measures, saves taste_learning.json in `out`, and returns what happened. Raises BenchError."""
    print("starting palate", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="palate-bench-") as folder:
        app = changed_example(APP, Path(folder) / APP, CHANGES)
        with wine_orders(app=app, name=APP, learner=True) as bench:
            updated = update(bench, Runs(bench.database), app)
    told = json.dumps(asdict(updated), indent=1, ensure_ascii=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "taste_learning.json").write_text(told, encoding="utf-8")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.taste_learning", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the result (bench-results)")
    print(report(parser.parse_args().out))


if __name__ == "__main__":
    main()
