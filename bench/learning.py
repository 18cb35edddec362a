"""The learning loop, seen from outside: `scripts/bench learning`.

On a running `wine-orders` of which no release knows how one house calls its wines (`bench.nicknames`): users correct
what they are shown, over HTTP; when enough feedback is there a training run starts by itself, its candidate passes the
gates, is tried as a canary on the users' own traffic and promoted. Measured: how many lines of that kind, worded as no
user worded them, are right at first place before and after. With `--poison` the users choose at random, and the gates
have to stop what is learnt from them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.data import ROOT
from bench.nicknames import HELD_OUT, NICKNAMES, SEEN, lines
from bench.processes import BenchError
from bench.rollouts import QUICK, Rollouts
from bench.traffic import Case, LiveTraffic, Users, load_cases
from bench.wine_orders import APP, CASES, wine_orders
from registry.derive import changed_spec
from training.runs import Run, Runs

EVENTS = 800
RATE_PER_S = 15.0
RUN_LIMIT_S = 1500.0
CHANGES: dict[str, Any] = {
    **QUICK,
    "rollout.guards.reward.margin": 0.02,
    # An encoder that is to learn from users needs a say: what rules do not know, it decides.
    "retrieve.sources.dense.weight": 4.0,
    "retrieve.sources.dense.options.floor": 0.3,
    "train.embedder.data": {"extra": "pairs.py --per-class 60", "unseen_items_ratio": 0.0},
    "train.embedder.trigger": {"new_events": EVENTS},
    "train.embedder.options.max_steps": 150,
    "train.embedder.options.max_tokens": 32,
    "train.embedder.options.evaluate_every": 50,
    "train.embedder.options.keep": "last",
    "train.embedder.gates": {
        "feedback": {"metric": "success_at_k", "require": "better"},
        "test": {"metric": "accuracy", "require": "no_worse", "margin": 0.02, "slice_margin": None},
    },
}


def learning_app(folder: Path) -> Path:
    """wine-orders with a quick rollout and a short training, in a new folder."""
    return changed_example(APP, folder, CHANGES)


def changed_example(app: str, folder: Path, changes: Mapping[str, Any]) -> Path:
    """A copy of an example in a new folder, with these settings."""
    shutil.copytree(ROOT / "examples" / app, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "app.yaml"
    spec = changed_spec(yaml.safe_load(file.read_text(encoding="utf-8")), changes)
    file.write_text(yaml.safe_dump(spec, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return folder


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came of the users' feedback. `status` is the run's; `version` its candidate; `rollout` the number of its
    trial, 0 for none. Shares are of lines right at first place."""

    status: str
    why: str
    version: int | None
    rollout: int
    before_ratio: float
    after_ratio: float
    seconds: Mapping[str, float]
    queries: int
    failed: int


class Learning:
    """The loop on a running platform. `runs` lists the app's training runs, newest first."""

    def __init__(self, url: str, key: str, rollouts: Rollouts, runs: Callable[[], Sequence[Run]]) -> None:
        self._url, self._key, self._rollouts, self._runs = url, key, rollouts, runs

    def measure(self) -> float:
        """Share of the held-out lines whose first result is right."""
        cases = lines(HELD_OUT, 4 * len(NICKNAMES), seed=3)
        with httpx.Client(headers={"authorization": f"Bearer {self._key}"}, timeout=30) as client:
            right = sum(self._first(client, case.query) in case.accept for case in cases)
        return right / len(cases)

    def learn(self, poison: bool = False) -> Learnt:
        """Users correct until the run has ended and, if its candidate goes on trial, that has ended too."""
        before, began = self.measure(), time.monotonic()
        known = {run.id for run in self._runs()}
        cases = [*_users_lines(poison), *load_cases(CASES)[:300]]
        seconds: dict[str, float] = {}
        with LiveTraffic(self._url, self._key, APP, cases, rate_per_s=RATE_PER_S, users=Users(correct=True)) as traffic:
            wait_for_run(self._runs, lambda run: run.id not in known, "a training run to start")
            seconds["until the run began"] = time.monotonic() - began
            run = wait_for_run(
                self._runs, lambda run: run.id not in known and run.ended_s is not None, "the run to end"
            )
            seconds["until it ended"] = time.monotonic() - began
            rollout = 0
            if run.status == "published":
                self._rollouts.wait(lambda r: r.get("number", 0) and r["version"] == run.version, "its trial", 60)
                self._rollouts.wait_for_end()
                rollout = self._rollouts.last()
                seconds["until its trial ended"] = time.monotonic() - began
        why = run.error or str(run.outcome.get("gates", {}).get("why", ""))
        return Learnt(
            run.status, why, run.version, rollout, before, self.measure(),
            {name: round(s, 1) for name, s in seconds.items()}, len(traffic.samples), len(traffic.failed),
        )  # fmt: skip

    def _first(self, client: httpx.Client, query: str) -> str | None:
        answer = client.post(f"{self._url}/v1/apps/{APP}/query", json={"query": query, "top_k": 1})
        answer.raise_for_status()
        body = answer.json()
        return None if body["abstained"] or not body["results"] else str(body["results"][0]["id"])


def wait_for_run(runs: Callable[[], Sequence[Run]], there: Callable[[Run], bool], what: str) -> Run:
    """The first of `runs()`, newest first, for which `there` holds. Raises BenchError."""
    limit = time.monotonic() + RUN_LIMIT_S
    while time.monotonic() < limit:
        if found := [run for run in runs() if there(run)]:
            return found[0]
        time.sleep(1)
    raise BenchError(f"waited {RUN_LIMIT_S:.0f} s for {what}")


def report(poison: bool, out: Path) -> str:
    """Measures, saves learning.json in `out`, and returns what happened. Raises BenchError."""
    print("starting palate", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="palate-bench-") as folder:
        app = learning_app(Path(folder) / APP)
        with wine_orders(app=app, learner=True) as bench:
            runs = Runs(bench.database)
            learnt = Learning(bench.url, bench.key, bench.rollouts, lambda: runs.of(APP, 5)).learn(poison)
            story = bench.rollouts.story(learnt.rollout) if learnt.rollout else "no trial"
    out.mkdir(parents=True, exist_ok=True)
    (out / "learning.json").write_text(json.dumps(asdict(learnt), indent=1, ensure_ascii=False), encoding="utf-8")
    return "\n".join([json.dumps(asdict(learnt), indent=1, ensure_ascii=False), story])


def _users_lines(poison: bool) -> list[Case]:
    """`poison`: every line means another wine each time, so there is nothing to learn but noise."""
    cases = lines(SEEN, 40 * len(NICKNAMES), seed=1)
    if not poison:
        return cases
    generator = random.Random(5)
    return [Case(case.query, frozenset({generator.choice(list(NICKNAMES))})) for case in cases]
