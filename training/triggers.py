"""When an app's models are due to be trained again. Pure; `training.learner` asks.

Level-triggered: what is due is found anew from the record of runs and the number of feedback events, so a learner that
was away misses nothing, and one that asks twice starts nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.schema import TrainSpec
from training.runs import Run

FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 6 * 3600.0
COUNTED = frozenset({"published", "waiting", "superseded", "gates-failed", "unchanged"})
"""Runs that made of the feedback what they could: the next one waits for more."""
LEARNER = "learner"
"""`who` of runs that started by themselves."""


@dataclass(frozen=True, slots=True)
class Due:
    """Train `names`, because of `why`."""

    names: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Seen:
    """An app as it is now. `runs`: its newest, newest first. `events`: number of its last feedback event. `since_s`:
    when its stable release was made, for an app that never trained. Times by the database's clock."""

    trains: Mapping[str, TrainSpec]
    runs: Sequence[Run]
    events: int
    since_s: float
    now_s: float


def due(seen: Seen) -> Due | None:
    """What to train now; None: nothing, or not yet."""
    newest = seen.runs[0] if seen.runs else None
    if newest is not None and newest.live:
        return None
    if newest is not None and seen.now_s < resting_until_s(seen.runs):
        return None
    if newest is not None and newest.status == "running" and newest.who == LEARNER:
        names = tuple(n for n in newest.request.get("trainings", ()) if n in seen.trains)
        if names:
            return Due(names, f"run {newest.id} was interrupted")
    found = {name: why for name in seen.trains if (why := _why(name, seen)) is not None}
    return Due(tuple(found), "; ".join(dict.fromkeys(found.values()))) if found else None


def resting_until_s(runs: Sequence[Run]) -> float:
    """After failures in a row the next try waits, twice as long each time; 0.0 where nothing failed."""
    failures = 0
    for run in runs:
        if run.status != "failed":
            break
        failures += run.attempts
    if not failures:
        return 0.0
    ended_s = runs[0].ended_s or runs[0].heartbeat_s
    return ended_s + pause_s(failures)


def pause_s(failures: int) -> float:
    return float(min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20), LONGEST_PAUSE_S))


def told(seen: Seen) -> str:
    """What the app waits for, for people."""
    if (until_s := resting_until_s(seen.runs)) > seen.now_s:
        return f"run {seen.runs[0].id} failed; next try in {until_s - seen.now_s:.0f} s"
    waits = []
    for name, train in seen.trains.items():
        last = _last(name, seen.runs)
        if train.trigger.new_events is not None:
            new = seen.events - (last.feedback_seq if last else 0)
            waits.append(f"{name}: {new} of {train.trigger.new_events} new events")
        if train.trigger.every_s is not None:
            ago = seen.now_s - (last.started_s if last else seen.since_s)
            waits.append(f"{name}: {ago:.0f} of {train.trigger.every_s:.0f} s since the last run")
    return "; ".join(waits) or "no trigger"


def _why(name: str, seen: Seen) -> str | None:
    trigger, last = seen.trains[name].trigger, _last(name, seen.runs)
    new = seen.events - (last.feedback_seq if last else 0)
    if trigger.new_events is not None and new >= trigger.new_events:
        return f"{new} new feedback events"
    since_s = last.started_s if last else seen.since_s
    if trigger.every_s is not None and seen.now_s - since_s >= trigger.every_s:
        return f"{trigger.every_s:.0f} s have passed"
    return None


def _last(name: str, runs: Sequence[Run]) -> Run | None:
    return next((r for r in runs if r.status in COUNTED and name in r.request.get("trainings", ())), None)
