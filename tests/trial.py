"""A made-up app with three releases behind a real endpoint, whose traffic a test steers and whose arms it breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from registry.memory_store import MemoryStore
from registry.traffic import Traffic
from serving.split import choose
from serving.trace import verify
from tests.desk import Desk
from tests.endpoint import Endpoint, Setup, bare_release, made_up_spec, serve
from tests.loads import Loads
from tests.waiting import wait_for

USERS = [f"user-{n}" for n in range(60)]


@dataclass
class Trial:
    """The app `teas` with three releases, each of which answers with its own number."""

    endpoint: Endpoint
    desk: Desk
    loads: Loads

    def steer(self, traffic: Traffic) -> Traffic:
        """Wait until the router follows it in full."""
        wait_for(lambda: self.desk.followed("teas"))
        return traffic

    def ask(self, user: str | None = None, text: str = "tea", key: str | None = None, **headers: str) -> httpx.Response:
        body = {"query": text} if user is None else {"query": text, "user": user}
        with self.endpoint.client(key, **headers) as client:
            return client.post("/v1/apps/teas/query", json=body)

    def answers(self, users: list[str], **headers: str) -> dict[str, str]:
        """User -> the release that answered, after checking that it was one release all the way."""
        found = {}
        with self.endpoint.client(None, **headers) as client:
            for user in users:
                reply = client.post("/v1/apps/teas/query", json={"query": "tea", "user": user})
                assert reply.status_code == 200, reply.text
                found[user] = self.whole(reply)
        return found

    def whole(self, reply: httpx.Response) -> str:
        body = reply.json()
        origin = verify(self.endpoint.services.trace_secret, "teas", body["trace_id"])
        ids = [result["id"] for result in body["results"]]
        assert ids in ([], [body["release"]])
        assert origin.release == body["release"]
        assert reply.headers["x-trace-id"] == body["trace_id"]
        return str(body["release"])

    def outcomes(self, arm: str, count: int) -> str:
        """What was recorded for the arm, once it is so many."""
        wait_for(lambda: len(self.desk.outcomes("teas", arm)) >= count)
        return self.desk.outcomes("teas", arm)

    def metric(self, line: str) -> float:
        with self.endpoint.client("") as client:
            text = client.get("/metrics").text
        return float(next((row.split()[-1] for row in text.splitlines() if row.startswith(line)), "0"))


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    releases = MemoryStore()
    for mark in ("first", "second", "third"):
        bare_release(releases, made_up_spec("teas"), mark)
    releases.set_alias("teas", "stable", 1)
    desk, loads = Desk(releases), Loads()
    setup = Setup(loads=loads, stores=lambda s: replace(s, board=desk.board, evidence=desk.evidence))
    with serve(tmp_path, releases, ["teas"], setup) as endpoint:
        yield Trial(endpoint, desk, loads)
        loads.gate.set()


def split(traffic: Traffic, users: list[str]) -> dict[str, list[str]]:
    arms: dict[str, list[str]] = {"stable": [], "canary": [], "control": []}
    for user in users:
        arms[choose(traffic, user)].append(user)
    assert all(arms[arm] for arm in ("canary", "control"))
    return arms
