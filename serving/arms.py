"""Answers a request by the arm it belongs to, and protects its caller: what an arm fails to do, stable does.

The query route calls `Arms.answer`. For an app without a rollout that is stable's answer and nothing else. In a
rollout, each request of the canary or the control ends in one entry of evidence, and those that failed there were
answered by stable within the same deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from registry.traffic import (
    ABSTAINED,
    ANSWERED,
    EMPTY,
    LOST,
    OVERLOADED,
    RAISED,
    TIMED_OUT,
    TOKEN_CHARS,
    EvidenceArm,
    Traffic,
)
from serving import metrics
from serving.errors import BadRequest, DeadlineExceeded, NotFound, Overloaded, ReplicaLost, TooLarge
from serving.evidence import Entry, EvidenceRecorder
from serving.logs import get_log
from serving.pipeline import Answer
from serving.router import Route, Router, ServedRelease
from serving.schema import Query
from serving.trace import Origin

log = get_log(__name__)

MIRRORED_AT_ONCE = 8
OUTCOMES = {
    ANSWERED: "answered",
    ABSTAINED: "abstained",
    EMPTY: "empty",
    RAISED: "raised",
    TIMED_OUT: "timed_out",
    OVERLOADED: "overloaded",
    LOST: "lost",
}
CALLERS = (BadRequest, NotFound, TooLarge)
"""Errors that are the caller's own fault, if stable says so too."""


class Asked(NamedTuple):
    """One request. `who`: its user or session, None where it names neither; `token`: the first part of its trace id;
    `deadline`: seconds of `time.monotonic`."""

    app: str
    who: str | None
    token: str
    queries: Sequence[Query]
    deadline: float


class Given(NamedTuple):
    """The answers, the release that gave them, and what the trace id is to say. `replayed`: in an arm's place."""

    served: ServedRelease
    answers: list[Answer]
    origin: Origin
    replayed: bool = False


class Arms:
    def __init__(
        self, router: Router, evidence: EvidenceRecorder, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._router = router
        self._evidence = evidence
        self._monotonic = monotonic
        self._mirrored: set[asyncio.Task[None]] = set()

    async def answer(self, asked: Asked) -> Given:
        """Raises PalateError: what stable raises. What an arm raises nobody sees."""
        route = self._router.route(asked.app, asked.who, asked.token)
        if route.arm != "stable" and route.traffic is not None:
            return await self._by_arm(asked, route, route.traffic, route.arm)
        answers = await route.served.answer(asked.queries, asked.deadline)
        if route.mirror is not None and route.traffic is not None and len(self._mirrored) < MIRRORED_AT_ONCE:
            task = asyncio.create_task(self._mirror(asked, route.mirror, route.traffic, answers))
            self._mirrored.add(task)
            task.add_done_callback(self._mirrored.discard)
        return Given(route.served, answers, Origin(route.served.version))

    async def close(self) -> None:
        """Give up what is being mirrored."""
        for task in self._mirrored:
            task.cancel()
        await asyncio.gather(*self._mirrored, return_exceptions=True)

    async def _by_arm(self, asked: Asked, route: Route, traffic: Traffic, arm: EvidenceArm) -> Given:
        began = self._monotonic()
        left = asked.deadline - began
        if left <= 0:  # nobody's fault but the deadline's
            return await self._by_stable(asked)
        if route.lost:
            self._record(asked, traffic, arm, LOST, 0.0)
            return await self._by_stable(asked, arm, LOST)
        try:
            answers = await route.served.answer(asked.queries, began + left * traffic.answer_within_ratio)
        except asyncio.CancelledError:
            # Its caller left before the arm answered. That happens to both arms, and more to one that is slow.
            self._record(asked, traffic, arm, TIMED_OUT, self._monotonic() - began)
            raise
        except CALLERS:
            took_s = self._monotonic() - began
            given = await self._by_stable(asked, arm, RAISED)
            self._record(asked, traffic, arm, RAISED, took_s)  # stable found nothing wrong with the request
            return given
        except Exception as error:  # noqa: BLE001 - whatever an arm does, its caller gets an answer
            failure = failure_of(error)
            self._record(asked, traffic, arm, failure, self._monotonic() - began)
            log.warning("arm.failed", app=asked.app, rollout=traffic.rollout, arm=arm, release=route.served.version,
                        outcome=OUTCOMES[failure], error=repr(error))  # fmt: skip
            if failure == LOST:
                self._router.lost(asked.app, route.served)
            return await self._by_stable(asked, arm, failure)
        self._record(asked, traffic, arm, outcome_of(answers), self._monotonic() - began)
        return Given(route.served, answers, Origin(route.served.version, traffic.rollout, arm))

    async def _by_stable(self, asked: Asked, arm: str = "", failure: str = "") -> Given:
        """By what is stable now. `arm` failed, as `failure` says; "" for none."""
        stable = self._router.served(asked.app)
        answers = await stable.answer(asked.queries, asked.deadline)
        if arm:
            metrics.REPLAYED.labels(asked.app, arm, OUTCOMES[failure]).inc()
        return Given(stable, answers, Origin(stable.version), replayed=bool(arm))

    async def _mirror(self, asked: Asked, canary: ServedRelease, traffic: Traffic, given: Sequence[Answer]) -> None:
        began = self._monotonic()
        within_s = canary.spec.deadline_s * traffic.answer_within_ratio
        try:
            answers = await canary.answer(asked.queries, began + within_s)
        except Exception as error:  # noqa: BLE001 - the outermost of this task: it is what is being tried out
            outcome, agreed = failure_of(error), False
            if outcome == LOST:
                self._router.lost(asked.app, canary)
        else:
            outcome, agreed = outcome_of(answers), first_ids(answers) == first_ids(given)
        self._record(asked, traffic, "shadow", outcome, self._monotonic() - began, "1" if agreed else "0")

    def _record(
        self, asked: Asked, traffic: Traffic, arm: EvidenceArm, outcome: str, seconds: float, agreed: str = ""
    ) -> None:
        metrics.ARM_REQUESTS.labels(asked.app, traffic.rollout, arm, OUTCOMES[outcome]).inc()
        token = asked.token[-TOKEN_CHARS:]
        self._evidence.record(Entry(asked.app, traffic.rollout, arm, seconds * 1000, outcome, token, agreed))


def failure_of(error: Exception) -> str:
    """The letter of what an arm raised."""
    if isinstance(error, ReplicaLost):
        return LOST
    if isinstance(error, DeadlineExceeded):
        return TIMED_OUT
    return OVERLOADED if isinstance(error, Overloaded) else RAISED


def outcome_of(answers: Sequence[Answer]) -> str:
    """The letter of what an arm answered: one line that abstains makes a request abstained."""
    results = [line.result for answer in answers for line in answer.lines]
    if any(result.abstained for result in results):
        return ABSTAINED
    return ANSWERED if any(result.candidates for result in results) else EMPTY


def first_ids(answers: Sequence[Answer]) -> list[list[str | None]]:
    """Of each line of each answer the id of its first result, None where it has none."""
    return [
        [line.result.candidates[0].id if line.result.candidates else None for line in answer.lines]
        for answer in answers
    ]
