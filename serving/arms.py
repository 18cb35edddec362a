"""Answers a request by the arm it belongs to, and protects its caller: what an arm fails to do, stable does.

The query route calls `Arms.answer`. For an app without a rollout that is stable's answer and nothing else. In a
rollout, each request of the canary or the control ends in one entry of evidence, and those that failed there were
answered by stable within the same deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

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
from serving.generate.generator import Wish
from serving.logs import get_log
from serving.pipeline import Answer
from serving.router import Route, Router, ServedRelease
from serving.schema import Query
from serving.telling import Ended, Telling
from serving.trace import Origin

log = get_log(__name__)
R = TypeVar("R")

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


class EngineLost(ReplicaLost):
    """The engine ended, which the arm shares with stable: its own replicas are as they were."""


class Asked(NamedTuple):
    """One request. `who`: its user or session, None where it names neither; `token`: the first part of its trace id;
    `deadline`: seconds of `time.monotonic`; `wish`: of the answer that is to be generated."""

    app: str
    who: str | None
    token: str
    queries: Sequence[Query]
    deadline: float
    wish: Wish = Wish()


class Given(NamedTuple):
    """The answers, the release that gave them, and what the trace id is to say. `replayed`: in an arm's place."""

    served: ServedRelease
    answers: list[Answer]
    origin: Origin
    replayed: bool = False


class Told(NamedTuple):
    """What was found, and what is being generated from it: its first event is there. Close `events`, whether or not
    you read them."""

    given: Given
    events: Telling


class Trial(NamedTuple):
    """A request that belongs to an arm. `lost`: the arm's replica is gone."""

    asked: Asked
    served: ServedRelease
    traffic: Traffic
    arm: EvidenceArm
    lost: bool


class Arms:
    protects = True
    """Stable stands in for an arm that fails."""

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
        if (trial := self._trial(asked, route)) is not None:
            return await self._by_arm(trial, self._answer_by_arm, self._by_stable)
        answers = await route.served.answer(asked.queries, asked.deadline)
        self._begin_mirror(asked, route, answers)
        return Given(route.served, answers, Origin(route.served.version))

    async def tell(self, asked: Asked) -> Told:
        """As `answer`, of one query, and what `generate` makes of it. Raises PalateError: what stable raises before its
        first event; what comes after that is raised by `events`. An arm that fails before its first event is
        replayed on stable, retrieval and all."""
        route = self._router.route(asked.app, asked.who, asked.token)
        if (trial := self._trial(asked, route)) is not None:
            return await self._by_arm(trial, self._tell_by_arm, self._tell_by_stable)
        answers = await route.served.answer(asked.queries, asked.deadline)
        self._begin_mirror(asked, route, answers)
        return await self._tell(asked, Given(route.served, answers, Origin(route.served.version)))

    async def tell_pinned(self, asked: Asked, served: ServedRelease) -> Told:
        """By the release that the request names: no evidence, and nothing stands in for it."""
        answers = await served.answer(asked.queries, asked.deadline)
        return await self._tell(asked, Given(served, answers, Origin(served.version)))

    async def close(self) -> None:
        """Give up what is being mirrored."""
        for task in self._mirrored:
            task.cancel()
        await asyncio.gather(*self._mirrored, return_exceptions=True)

    def _trial(self, asked: Asked, route: Route) -> Trial | None:
        """None for a request that is stable's."""
        if route.arm == "stable" or route.traffic is None:
            return None
        return Trial(asked, route.served, route.traffic, route.arm, route.lost)

    async def _by_arm(
        self,
        trial: Trial,
        attempt: Callable[[Trial, float], Awaitable[R]],
        instead: Callable[[Asked, str, str], Awaitable[R]],
    ) -> R:
        """`attempt` gets when it began, and records its own success; `instead` asks stable, once that has failed."""
        asked, arm = trial.asked, trial.arm
        began = self._monotonic()
        if asked.deadline <= began:  # nobody's fault but the deadline's
            return await instead(asked, "", "")
        if trial.lost:
            self._record(trial, LOST, 0.0)
            return await instead(asked, arm, LOST)
        try:
            return await attempt(trial, began)
        except asyncio.CancelledError:
            # Its caller left before the arm answered. That happens to both arms, and more to one that is slow.
            self._record(trial, TIMED_OUT, self._monotonic() - began)
            raise
        except CALLERS:
            took_s = self._monotonic() - began
            given = await instead(asked, arm, RAISED)
            self._record(trial, RAISED, took_s)  # stable found nothing wrong with the request
            return given
        except Exception as error:  # noqa: BLE001 - whatever an arm does, its caller gets an answer
            failure = failure_of(error)
            self._record(trial, failure, self._monotonic() - began)
            log.warning("arm.failed", app=asked.app, rollout=trial.traffic.rollout, arm=arm,
                        release=trial.served.version, outcome=OUTCOMES[failure], error=repr(error))  # fmt: skip
            if failure == LOST and not isinstance(error, EngineLost):
                self._router.lost(asked.app, trial.served)
            return await instead(asked, arm, failure)

    def _until(self, trial: Trial, began: float) -> float:
        """When the arm's share of the time is over."""
        return began + (trial.asked.deadline - began) * trial.traffic.answer_within_ratio

    async def _answer_by_arm(self, trial: Trial, began: float) -> Given:
        answers = await trial.served.answer(trial.asked.queries, self._until(trial, began))
        self._record(trial, outcome_of(answers), self._monotonic() - began)
        return Given(trial.served, answers, Origin(trial.served.version, trial.traffic.rollout, trial.arm))

    async def _tell_by_arm(self, trial: Trial, began: float) -> Told:
        until = self._until(trial, began)
        answers = await trial.served.answer(trial.asked.queries, until)
        given = Given(trial.served, answers, Origin(trial.served.version, trial.traffic.rollout, trial.arm))
        found_s = self._monotonic() - began

        def ended(telling: Telling, error: Exception | None) -> None:
            generated = telling.generated
            outcome = outcome_of(answers)
            if error is not None or (generated is not None and generated.fault):
                outcome = RAISED if error is None else failure_of(error)
            measures = generated.measures if generated is not None else {}
            self._record(trial, outcome, found_s + telling.busy_s, measures=measures)

        try:
            async with asyncio.timeout(until - self._monotonic()):
                return await self._tell(trial.asked, given, ended)
        except TimeoutError:
            raise DeadlineExceeded("nothing was generated within the arm's share of the deadline") from None
        except ReplicaLost as error:
            raise EngineLost(error.detail) from error

    async def _tell(self, asked: Asked, given: Given, ended: Ended | None = None) -> Told:
        """`ended` is not called where this raises."""
        query, lines = asked.queries[0], given.answers[0].lines
        last_resort = ended is None or not self.protects
        events = given.served.generate(query, lines, asked.wish, asked.deadline, last_resort=last_resort)
        telling = Telling(events, ended, self._monotonic)
        await telling.begin()
        return Told(given, telling)

    async def _by_stable(self, asked: Asked, arm: str = "", failure: str = "") -> Given:
        """By what is stable now. `arm` failed, as `failure` says; "" for none."""
        stable = self._router.served(asked.app)
        answers = await stable.answer(asked.queries, asked.deadline)
        if arm:
            metrics.REPLAYED.labels(asked.app, arm, OUTCOMES[failure]).inc()
        return Given(stable, answers, Origin(stable.version), replayed=bool(arm))

    async def _tell_by_stable(self, asked: Asked, arm: str = "", failure: str = "") -> Told:
        return await self._tell(asked, await self._by_stable(asked, arm, failure))

    def _begin_mirror(self, asked: Asked, route: Route, answers: Sequence[Answer]) -> None:
        """What is generated is not mirrored: it would take the engine's room from requests."""
        if route.mirror is not None and route.traffic is not None and len(self._mirrored) < MIRRORED_AT_ONCE:
            trial = Trial(asked, route.mirror, route.traffic, "shadow", False)
            task = asyncio.create_task(self._mirror(trial, answers))
            self._mirrored.add(task)
            task.add_done_callback(self._mirrored.discard)

    async def _mirror(self, trial: Trial, given: Sequence[Answer]) -> None:
        asked, canary = trial.asked, trial.served
        began = self._monotonic()
        within_s = canary.spec.deadline_s * trial.traffic.answer_within_ratio
        try:
            answers = await canary.answer(asked.queries, began + within_s)
        except Exception as error:  # noqa: BLE001 - the outermost of this task: it is what is being tried out
            outcome, agreed = failure_of(error), False
            if outcome == LOST:
                self._router.lost(asked.app, canary)
        else:
            outcome, agreed = outcome_of(answers), first_ids(answers) == first_ids(given)
        self._record(trial, outcome, self._monotonic() - began, "1" if agreed else "0")

    def _record(
        self,
        trial: Trial,
        outcome: str,
        seconds: float,
        agreed: str = "",
        measures: Mapping[str, float] | None = None,
    ) -> None:
        asked, rollout = trial.asked, trial.traffic.rollout
        metrics.ARM_REQUESTS.labels(asked.app, rollout, trial.arm, OUTCOMES[outcome]).inc()
        token = asked.token[-TOKEN_CHARS:]
        self._evidence.record(
            Entry(asked.app, rollout, trial.arm, seconds * 1000, outcome, token, agreed, measures or {})
        )


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
