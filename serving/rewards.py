"""`SqlRewards`: the feedback that was stored, as rewards of the arms that answered. The scoreboard reads it.

Nothing is joined by a query: the trace id of feedback says which rollout and arm answered, and when (it begins with the
time, so the ids of a rollout lie together in the index).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sqlalchemy import func, select

from registry.database import Database
from registry.traffic import TOKEN_CHARS, Reward, TrialArm
from serving.schema import FeedbackEvent
from serving.store.codec import check_limit, decode_event
from serving.store.tables import feedback

SKEW_S = 60.0
"""How far the clocks of a cluster's machines may be apart."""

ARMS: Mapping[str, TrialArm] = {"c": "canary", "k": "control"}
ANSWERED_BY_ARM = re.compile(r"([0-9a-f]{32})-[^-]+\.([0-9]{1,18})([ck])-[0-9a-f]+")

Weights = Callable[[str], Mapping[str, float]]


class Answer(NamedTuple):
    """What the trace id of an arm's answer says."""

    rollout: int
    arm: TrialArm
    token: str
    answered_s: float


class SqlRewards:
    """Satisfies `registry.ports.RewardSource`. `weights` gives an app's worth of each event; one it does not name is
    worth nothing. An event that carries a value (a rating) is worth that times its weight. Raises RegistryUnavailable
    when the database cannot be used."""

    def __init__(self, database: Database, weights: Weights) -> None:
        self._database = database
        self._weights = weights

    def start(self, app: str, answered_s: float) -> int:
        since = f"{max(0, int((answered_s - SKEW_S) * 1000)):012x}"
        first = select(func.min(feedback.c.seq)).where(feedback.c.trace_id >= since, feedback.c.app == app)
        newest = select(func.max(feedback.c.seq)).where(feedback.c.app == app)
        with self._database.reading() as connection:
            # In this order: what is stored between the two has a higher number than either
            last = connection.scalar(newest) or 0
            found = connection.scalar(first)
        return int(last if found is None else min(found - 1, last))

    def rewards(self, app: str, after: int, limit: int) -> tuple[list[Reward], int]:
        check_limit(limit)
        newest = select(func.max(feedback.c.seq)).where(feedback.c.app == app)
        arms = (
            select(feedback.c.seq, feedback.c.trace_id, feedback.c.body)
            .where(feedback.c.app == app, feedback.c.seq > after, feedback.c.trace_id.like("%.%"))
            .order_by(feedback.c.seq)
            .limit(limit)
        )
        with self._database.reading() as connection:
            last = connection.scalar(newest) or 0
            if last <= after:
                return [], after
            rows = connection.execute(arms.where(feedback.c.seq <= last)).all()
        weights = self._weights(app) if rows else {}
        found = [
            _reward(row.seq, answer, decode_event(row.body), weights) for row in rows if (answer := read(row.trace_id))
        ]
        return found, int(rows[-1].seq if len(rows) == limit else last)


def read(trace_id: str) -> Answer | None:
    """None for an answer that no arm gave. The id was verified when the feedback was accepted."""
    match = ANSWERED_BY_ARM.fullmatch(trace_id)
    if match is None:
        return None
    digits, rollout, arm = match.groups()
    return Answer(int(rollout), ARMS[arm], digits[-TOKEN_CHARS:], int(digits[:12], 16) / 1000)


def _reward(seq: int, answer: Answer, event: FeedbackEvent, weights: Mapping[str, float]) -> Reward:
    value = weights.get(event.event, 0.0) * (1.0 if event.value is None else event.value)
    return Reward(seq, answer.rollout, answer.arm, answer.token, answer.answered_s, value, event.at_s)
