"""Counts of a rollout that is under way, for whoever watches it. Called by the admin routes."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from registry.ports import EvidenceStore
from registry.report.history import Tally
from registry.traffic import EvidenceArm

PAGE = 1000
PAGES_PER_LOOK = 5
"""A look reads no more, so that the first one at a long rollout does not hold up the process: it may lag behind."""

Counts = dict[EvidenceArm, Tally]


@dataclass(slots=True)
class _Seen:
    rollout: int
    cursor: dict[str, int] = field(default_factory=dict)
    counts: dict[EvidenceArm, Counter[str]] = field(default_factory=dict)


class LiveCounts:
    """Remembers how far it read, so that a look costs only what is new. Safe to share between threads."""

    def __init__(self, evidence: EvidenceStore) -> None:
        self._evidence = evidence
        self._apps: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def look(self, app: str, rollout: int) -> Counts:
        """Requests of each arm since the rollout began. Raises RegistryUnavailable."""
        with self._lock:
            seen = self._apps.get(app)
            if seen is None or seen.rollout != rollout:
                seen = self._apps[app] = _Seen(rollout)
            for _ in range(PAGES_PER_LOOK):
                page = self._evidence.after(app, rollout, seen.cursor, PAGE)
                for one in page:
                    seen.cursor[one.router] = max(seen.cursor.get(one.router, 0), one.seq)
                    seen.counts.setdefault(one.arm, Counter()).update(one.block.outcomes)
                if len(page) < PAGE:
                    break
            return {arm: Tally(dict(counts)) for arm, counts in seen.counts.items()}
