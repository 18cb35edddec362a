"""Rollouts on a running platform, from outside: publish a release, see where its rollout is, read its story.

Used by `bench.rollback` and by the end-to-end tests of rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import psutil

from bench.processes import BenchError
from registry.derive import changed_spec, derive
from registry.ports import ReleaseStore
from serving.commands.derive import checked, with_drill

QUICK = {
    "rollout.steps_percent": [25, 50],
    "rollout.step": {"min_requests": 60, "min_s": 2, "deadline_s": 240},
    "rollout.bake_s": 10,
    "rollout.bake_percent": 25,
    "rollout.guards.reward.window_s": 2,
}
"""A plan for traffic of 50 queries a second: minutes instead of hours."""


WORSE = {
    "retrieve.sources.rules.options": {"jamo": 0, "aliases": 0, "keyboard": 0},
    "retrieve.fusion.abstain_below": 0,
}
"""Settings of wine-orders that answer quickly and wrongly: no spelling is understood, and every guess is given."""


class Rollouts:
    """Of one app. `url` is the endpoint's, `key` has the scope `admin`."""

    def __init__(self, url: str, key: str, store: ReleaseStore, app: str) -> None:
        self.app = app
        self._store = store
        self._client = httpx.Client(
            base_url=f"{url}/v1/apps/{app}", headers={"authorization": f"Bearer {key}"}, timeout=20
        )

    def publish(
        self, changes: Mapping[str, Any], drill: Mapping[str, float] | None = None, base: str = "stable"
    ) -> int:
        """The version of a release that differs from `base` in these settings."""
        origin = self._store.get(self.app, base)
        spec = changed_spec(origin.release.spec, changes)
        if drill:
            spec = with_drill(spec, dict(drill))
        return self._store.publish(derive(origin, checked(spec)), {}).version

    def start(self, version: int) -> None:
        """Move the alias `canary` to the version, as a person would in the MLflow UI."""
        self._store.set_alias(self.app, "canary", version)

    def overview(self) -> dict[str, Any]:
        """What the admin route tells of the app now."""
        return dict(self._get("/rollout").json())

    def current(self) -> dict[str, Any]:
        """The rollout that runs; {} when none does."""
        return dict(self.overview().get("rollout") or {})

    def stable(self) -> int:
        """The version that answers."""
        return int(self.overview()["stable"])

    def last(self) -> int:
        """The number of the newest rollout; 0 before the first."""
        newest = self._get("/rollouts?limit=1").json()["rollouts"]
        return int(newest[0]["number"]) if newest else 0

    def act(self, action: str, **fields: Any) -> httpx.Response:
        return self._client.post("/rollout", json={"action": action, "why": "a test", **fields})

    def entries(self, number: int) -> list[dict[str, Any]]:
        answer = self._get(f"/rollouts/{number}")
        return list(answer.json()["entries"])

    def story(self, number: int) -> str:
        answer = self._get(f"/rollouts/{number}")
        return str(answer.json()["story"])

    def report(self, number: int) -> str:
        """The HTML page."""
        answer = self._get(f"/rollouts/{number}/report")
        return answer.text

    def _get(self, path: str) -> httpx.Response:
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer

    def wait(self, done: Callable[[dict[str, Any]], bool], what: str, limit_s: float) -> dict[str, Any]:
        """The rollout when `done` holds of it ({}: none runs). Raises BenchError that says where it stands instead."""
        deadline = time.monotonic() + limit_s
        state: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                state = self.current()
            except httpx.HTTPError as error:
                state = {"unknown": repr(error)}
            else:
                if done(state):
                    return state
            time.sleep(0.2)
        raise BenchError(f"waited {limit_s:.0f} s for {what}; the rollout is at {state}")

    def wait_for_phase(self, version: int, phase: str, limit_s: float = 120) -> int:
        """The number of the version's rollout, once it is in that phase."""
        at = self.wait(
            lambda r: r.get("version") == version and r.get("phase") == phase, f"{phase} of {version}", limit_s
        )
        return int(at["number"])

    def wait_for_end(self, limit_s: float = 300) -> None:
        self.wait(lambda r: not r, "the end of the rollout", limit_s)

    def arm_processes(self, number: int, arm: str = "canary") -> list[psutil.Process]:
        """The replicas of an arm on this machine."""
        mark = f"{self.app}-r{number}-{arm}"
        return [p for p in psutil.process_iter(["cmdline"]) if any(mark in part for part in p.info["cmdline"] or [])]
