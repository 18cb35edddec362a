"""`DrillSource`: a source that misbehaves on purpose, so that a team can see a rollback before it needs one.

A release whose spec names a source of engine `drill` answers as it would without it, and fails in the way its options
say. It serves only where the platform was started with PALATE_DRILLS=1: `serving.build` refuses it anywhere else. The
fault drills and the timing of rollbacks (`scripts/bench rollback`) are made of such releases.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from registry.errors import ReleaseRefused
from serving.errors import BadRequest
from serving.ports import Hits, Mask
from serving.schema import Item, Query

ALLOWED = "PALATE_DRILLS"
NOTHING = Hits(np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class Drill:
    """What goes wrong, and after how many queries of this process. Several faults can be asked for at once."""

    after: float = 0
    refuse: float = 0
    """1: the release does not load."""
    fail_ratio: float = 0
    """Share of queries that raise, spread evenly: 0..1."""
    delay_ms: float = 0
    """Each batch takes this much longer."""
    hang: float = 0
    """1: a batch never ends."""
    leak_mb: float = 0
    """Each query keeps this much memory."""
    die: float = 0
    """1: the process kills itself."""


def read_drill(options: Mapping[str, float]) -> Drill:
    """Raises BadRequest that names the option."""
    known = {f.name for f in fields(Drill)}
    for name, value in options.items():
        if name not in known:
            raise BadRequest(f"a drill has no option {name!r}; it has {sorted(known)}", field=f"options.{name}")
        if value < 0 or (name == "fail_ratio" and value > 1):
            raise BadRequest(f"option {name!r} of a drill cannot be {value}", field=f"options.{name}")
    return Drill(**options)


class DrillFailure(RuntimeError):
    """What a drill raises, so that nobody mistakes it for a real fault."""


class DrillSource:
    """Satisfies `serving.ports.Source`; proposes nothing."""

    def __init__(self, options: Mapping[str, float], environment: Mapping[str, str] = os.environ) -> None:
        """Raises ReleaseRefused where drills are not allowed, or where that is the drill."""
        if environment.get(ALLOWED) != "1":
            raise ReleaseRefused(f"the release has a source of engine `drill`: start the platform with {ALLOWED}=1")
        self._drill = read_drill(options)
        if self._drill.refuse:
            raise ReleaseRefused("a drill: this release does not load")
        self._seen = 0
        self._failures_due = 0.0
        self._leaked: list[bytes] = []

    def search(
        self,
        queries: Sequence[Query],
        allowed: Sequence[Mask | None],  # noqa: ARG002
        top_k: int,  # noqa: ARG002
    ) -> list[Hits]:
        self._seen += len(queries)
        if self._seen > self._drill.after:
            self._misbehave(len(queries))
        return [NOTHING] * len(queries)

    def add(self, first_row: int, items: Sequence[Item]) -> None:  # noqa: ARG002
        return None

    def _misbehave(self, queries: int) -> None:
        drill = self._drill
        if drill.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if drill.leak_mb:
            # Random bytes: pages of one value could be shared or swapped away unseen.
            self._leaked.append(os.urandom(4096) * int(queries * drill.leak_mb * 256))
        while drill.hang:
            time.sleep(3600)
        time.sleep(drill.delay_ms / 1000)
        self._failures_due += queries * drill.fail_ratio
        if self._failures_due >= 1:
            self._failures_due -= 1
            raise DrillFailure("a drill: this query fails")
