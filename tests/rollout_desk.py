"""Deals with what people command, by the real state machine, in a thread: a controller that sees no MLflow and no
evidence, for tests of the faces that people use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from registry.plan import RolloutPlan
from registry.ports import Journal, ReleaseStore
from registry.rollout import AliasesSeen, AppState, CommandSeen, advance, traffic_of
from registry.traffic import Entry, Evidence
from serving.stores import Stores

HOLDER = "desk"
LEASE_S = 60.0


@contextmanager
def desk(stores: Stores, app: str, every_s: float = 0.02) -> Iterator[None]:
    """Adopts `stable` of the app, then handles commands as they come."""
    plans = {v.version: RolloutPlan() for v in stores.releases.versions(app)}
    stop = threading.Event()
    assert stores.journal.take_lease(HOLDER, LEASE_S)
    seen = AliasesSeen(stores.releases.get(app, "stable").version, None, plans)
    _advance(stores.journal, stores.releases, app, seen, ())
    thread = threading.Thread(target=_run, args=(stores, app, plans, stop, every_s), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        stores.journal.release_lease(HOLDER)


def past(stores: Stores, entries: tuple[Entry, ...], evidence: tuple[Evidence, ...]) -> None:
    """Put a rollout of long ago into the stores; the next one is numbered after it."""
    app, number = entries[0].app, entries[0].rollout
    assert stores.journal.take_lease(HOLDER, LEASE_S)
    stores.journal.record(HOLDER, AppState(app, rollouts=number), None, [replace(e, id=0) for e in entries])
    stores.evidence.add(evidence)


def _run(stores: Stores, app: str, plans: Mapping[int, RolloutPlan], stop: threading.Event, every_s: float) -> None:
    while not stop.wait(every_s):
        for command in stores.journal.commands():
            if command.app == app:
                plan = plans.get(command.version or 0)
                _advance(stores.journal, stores.releases, app, CommandSeen(command, plan), (command.id,))


def _advance(
    journal: Journal, releases: ReleaseStore, app: str, event: AliasesSeen | CommandSeen, handled: tuple[int, ...]
) -> None:
    state = journal.states().get(app) or AppState(app)
    new, entries = advance(state, event, time.time())
    journal.record(HOLDER, new, traffic_of(new), entries, releases.versions(app), handled)
