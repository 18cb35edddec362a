"""Live traffic on a running platform: queries at a steady rate from many users, who choose or reject what they see.

An open loop: a slow answer does not slow the next query down, as with real users. Used by `bench.rollback` and by the
end-to-end tests of rollouts.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Case:
    """A query, with a record where the app takes one, and the ids of the items that its user would choose."""

    query: str
    accept: frozenset[str]
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Users:
    """`taken`, `refused`: the app's events for a result that is taken, and for results that are turned down. `correct`:
    who refuses what is shown then picks the right item by hand."""

    taken: str = "select"
    refused: str = "reject"
    correct: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One query: when it was sent (Unix seconds), how long it took, and how it ended. `status` 0: no answer at all."""

    sent_s: float
    ms: float
    status: int
    release: str
    problem: str = ""


def load_cases(file: Path) -> list[Case]:
    """Cases of an evaluation set that have an answer."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Case(line["query"], frozenset(line["accept"])) for line in lines if line["accept"]]


class LiveTraffic:
    """`with LiveTraffic(...) as traffic:` sends until the block ends; `samples` holds what came of it."""

    def __init__(
        self, url: str, key: str, app: str, cases: Sequence[Case], *, rate_per_s: float = 50.0, users: Users = Users()
    ) -> None:
        self.samples: list[Sample] = []
        self.feedback_sent = 0
        self._base = f"{url}/v1/apps/{app}"
        self._headers = {"authorization": f"Bearer {key}"}
        self._cases = cases
        self._gap_s = 1.0 / rate_per_s
        self._users = users
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="live-traffic", daemon=True)

    def __enter__(self) -> LiveTraffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    @property
    def failed(self) -> list[Sample]:
        """Queries whose user got no answer."""
        return [sample for sample in self.samples if sample.status != 200]

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        running: set[asyncio.Task[None]] = set()
        async with httpx.AsyncClient(headers=self._headers, timeout=30, limits=limits) as client:
            due = time.monotonic()
            while not self._stop.is_set():
                task = asyncio.create_task(self._ask(client, self._random.choice(self._cases)))
                running.add(task)
                task.add_done_callback(running.discard)
                due += self._gap_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*running)

    async def _ask(self, client: httpx.AsyncClient, case: Case) -> None:
        user = f"made-up-user-{self._random.randrange(100_000)}"
        sent_s, started = time.time(), time.perf_counter()
        try:
            body = {"query": case.query, "top_k": 3, "user": user, **({"record": case.record} if case.record else {})}
            answer = await client.post(f"{self._base}/query", json=body)
        except httpx.HTTPError as error:
            self.samples.append(Sample(sent_s, _ms(started), 0, "", repr(error)))
            return
        ms = _ms(started)
        if answer.status_code != 200:
            self.samples.append(Sample(sent_s, ms, answer.status_code, "", answer.text))
            return
        body = answer.json()
        self.samples.append(Sample(sent_s, ms, 200, body["release"]))
        await self._react(client, case, body, user)

    async def _react(self, client: httpx.AsyncClient, case: Case, body: dict[str, Any], user: str) -> None:
        """The user takes the first result if it is what they meant, and rejects what they were shown if it is not."""
        shown = [result["id"] for result in body["results"]]
        about = {"trace_id": body["trace_id"], "user": user}
        right = next(iter(sorted(case.accept)))
        events: list[dict[str, Any]] = []
        if shown and shown[0] in case.accept:
            events.append({"event": self._users.taken, "item_id": shown[0]})
        else:
            if shown:
                wrong = [item for item in shown if item not in case.accept]
                events.append({"event": self._users.refused, "rejected": wrong})
            if self._users.correct:
                events.append({"event": self._users.taken, "item_id": right})
        for event in events:
            try:
                answer = await client.post(f"{self._base}/feedback", json=about | event)
                self.feedback_sent += answer.is_success
            except httpx.HTTPError:
                return  # queries are what is measured


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
