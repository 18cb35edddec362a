"""The promise of the product: a person moves an alias in the MLflow UI, the traffic follows, is judged, and the outcome
is written back, while users see nothing of it.

Everything is real: wine-orders on Ray Serve, live queries and feedback, MLflow, and a headless Chromium that clicks.
PALATE_TEST_SCREENSHOTS names a folder for the pictures and reports; by default they go with the test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from bench.rollouts import QUICK, WORSE, Rollouts
from bench.traffic import LiveTraffic, load_cases
from registry.mlflow_store import MlflowStore
from tests.browser import ModelPage, chromium
from tests.platform import EXAMPLES, Platform
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APP = "wine-orders"


@dataclass
class Live:
    """A platform under traffic, and a person at the MLflow UI."""

    rollouts: Rollouts
    store: MlflowStore
    traffic: LiveTraffic
    page: ModelPage
    driver: webdriver.Chrome
    pictures: Path

    def try_in_ui(self, name: str, version: int) -> int:
        """Set `canary` on the version with the mouse, wait for the end; the number of its rollout."""
        self.page.set_alias("canary", version)
        number = self.rollouts.wait_for_phase(version, "step")
        self.page.open()
        self.page.screenshot(self.pictures / f"{name}-canary.png")
        self.rollouts.wait_for_end()
        self.page.open()
        self.page.screenshot(self.pictures / f"{name}-end.png")
        report = self.pictures / f"{name}-report.html"
        report.write_text(self.rollouts.report(number), encoding="utf-8")
        self.driver.get(report.as_uri())
        self.driver.save_screenshot(str(self.pictures / f"{name}-report.png"))
        (self.pictures / f"{name}-story.txt").write_text(self.rollouts.story(number), encoding="utf-8")
        return number

    def assert_end(self, number: int, kind: str, version: int) -> list[dict[str, Any]]:
        entries = self.rollouts.entries(number)
        kinds = [entry["kind"] for entry in entries]
        assert kind in kinds, self.rollouts.story(number)
        assert self.rollouts.stable() == version
        assert self.store.get(APP, "stable").version == version
        assert not self.traffic.failed
        return entries


@pytest.fixture(scope="module")
def live(wine_platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    pictures = Path(os.environ.get("PALATE_TEST_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    pictures.mkdir(parents=True, exist_ok=True)
    cases = load_cases(EXAMPLES / APP / "evaluation" / "test.jsonl")
    store = MlflowStore(wine_platform.mlflow_url)
    rollouts = Rollouts(wine_platform.url, wine_platform.key, store, APP)
    with chromium() as driver, LiveTraffic(wine_platform.url, wine_platform.key, APP, cases) as traffic:
        page = ModelPage(driver, wine_platform.mlflow_url, APP)
        yield Live(rollouts, store, traffic, page, driver, pictures)


def test_releases_earn_their_traffic(live: Live):
    """One story in one test: each release is tried against the stable one that the release before it left."""
    first = live.store.get(APP, "stable").version
    weak = live.rollouts.publish({**QUICK, **WORSE, "description": "guesses"})
    better = live.rollouts.publish({**QUICK, "description": "understands spelling"})
    live.page.set_alias("stable", weak)  # a person decides: at once, without evidence
    live.rollouts.wait(lambda r: r.get("version") == weak and r["phase"] == "baking", "the switch", 30)
    live.rollouts.wait_for_end()
    assert live.rollouts.stable() == weak != first

    live.assert_end(live.try_in_ui("better", better), "promoted", better)

    equal = live.rollouts.publish({"description": "nothing but this text is new"})
    live.assert_end(live.try_in_ui("equal", equal), "promoted", equal)

    slower = live.rollouts.publish({"description": "slower"}, {"delay_ms": 120, "after": 30})
    number = live.try_in_ui("slower", slower)
    assert_failed_by(live.assert_end(number, "rolled-back", equal), {"p50", "p95", "p99"})

    broken = live.rollouts.publish({"description": "broken"}, {"fail_ratio": 1, "after": 30})
    number = live.try_in_ui("broken", broken)
    assert_failed_by(live.assert_end(number, "rolled-back", equal), {"error"})
    wait_for(lambda: live.store.get(APP, broken).tags.get("palate.rollout") == "rolled back", 30)
    wait_for(lambda: "canary" not in live.store.get(APP, broken).aliases, 30)

    # It asks the dense source more often and abstains elsewhere: nothing but the reward may find it.
    only_reward = {f"rollout.guards.{guard}": None for guard in ("p50", "p95", "p99", "abstained", "empty")}
    worse = live.rollouts.publish({**WORSE, **only_reward, "description": "guesses again"})
    number = live.try_in_ui("worse", worse)
    assert_failed_by(live.assert_end(number, "rolled-back", equal), {"reward"})


def assert_failed_by(entries: list[dict[str, Any]], guards: set[str]) -> None:
    """The rollback names a guard, among these, that failed."""
    [end] = [entry for entry in entries if entry["kind"] == "rolled-back"]
    failed = {g["name"] for g in end["details"]["verdict"]["guards"] if g["state"] == "Fail"}
    assert failed & guards, end
