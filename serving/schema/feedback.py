"""What one request did (`Trace`) and what its user did next (`FeedbackEvent`). The trace id is the feedback token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Trace:
    """One answered (or failed) query. `lines` holds, per understood line, its raw text and the candidates shown; and
    the query's `record` and `like`, where it had them.

    `at_s` is Unix time; `timings_ms` maps a phase to its milliseconds, with "total" for the whole. `rollout` and `arm`
    ("canary" or "control") say which arm of which rollout answered; 0 and "" for stable's plain answers. `status` is
    "replayed" where an arm failed and stable answered in its place. `answer` is what was generated, empty where
    nothing was: text, form, model, adapter, checks, usage, repaired, fallback and times.
    """

    trace_id: str
    app: str
    release: str
    at_s: float
    query: str
    lines: Sequence[Mapping[str, Any]]
    user: str | None = None
    session: str | None = None
    status: str = "ok"
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    rollout: int = 0
    arm: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    """One event about one trace. `event_id` makes it idempotent: the same id is stored once.

    `raw` is the line the user chose for, `selected` the item chosen, `rejected` the items shown and turned down,
    `scores` the score each source gave the shown items (so `scores["rules"][item_id]` is the rule score). `rollout`
    and `arm` are those of the answer, as its trace id proves them; 0 and "" for a plain answer.
    """

    event_id: str
    trace_id: str
    app: str
    release: str
    event: str
    at_s: float
    user: str | None = None
    line: int = 0
    raw: str | None = None
    selected: str | None = None
    rejected: Sequence[str] = ()
    value: float | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rollout: int = 0
    arm: str = ""
