"""The database is down for a minute of a rollout, with real processes: users see no error, and the rollout goes on.

A platform of its own, on PostgreSQL: a SQLite file cannot be away.
"""

from __future__ import annotations

import time

import pytest

from bench.rollouts import QUICK, Rollouts
from bench.traffic import LiveTraffic, load_cases
from registry.mlflow_store import MlflowStore
from tests.platform import EXAMPLES, running
from tests.postgres import PostgresServer, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APP = "wine-orders"
DOWN_S = 60.0

__all__ = ["postgres"]


def test_database_is_down_for_a_minute(postgres: PostgresServer) -> None:
    cases = load_cases(EXAMPLES / APP / "evaluation" / "test.jsonl")
    with running(
        [EXAMPLES / APP], "--no-learner", PALATE_DRILLS="1", PALATE_DATABASE_URL=postgres.create()
    ) as platform:
        rollouts = Rollouts(platform.url, platform.key, MlflowStore(platform.mlflow_url), APP)
        version = rollouts.publish({**QUICK, "description": "the database goes"})
        broken = rollouts.publish({**QUICK, "description": "broken"}, {"fail_ratio": 1, "after": 100})
        with LiveTraffic(platform.url, platform.key, APP, cases) as traffic:
            rollouts.start(version)
            rollouts.wait_for_phase(version, "step")
            asked = len(traffic.samples)
            postgres.stop()
            try:
                time.sleep(DOWN_S)
            finally:
                postgres.start()
            answered = len(traffic.samples) - asked
            rollouts.wait(lambda _: rollouts.stable() == version, "the promotion", 240)
            rollouts.wait_for_end()
            # Feedback of the minute was kept in the spool, and judged when it was back.
            rollouts.start(broken)
            rollouts.wait(lambda r: r.get("version") == broken, "the next rollout", 60)
            rollouts.wait_for_end()
        assert answered > DOWN_S * 40
        assert not traffic.failed
        assert rollouts.stable() == version
        assert "rolled back" in rollouts.story(rollouts.last())
