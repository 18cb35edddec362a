"""What the deployer reads from Serve's status: every state an arm goes through, and the line a person needs."""

from __future__ import annotations

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from registry.traffic import Traffic
from serving.local.arm_state import Judged, judge, root_cause
from serving.local.deployments import wanted_arms

TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
ray::ServeReplica:teas-r1-canary:arm.initialize_and_get_metadata() (pid=7, ip=127.0.0.1, actor_id=ab)
  File "concurrent/futures/_base.py", line 449, in result
RuntimeError: Traceback (most recent call last):
  File "serving/inline.py", line 22, in load_inline
    folders = build.fetch_components(version, stores.releases, config.component_cache)
{error}"""
REFUSED = "registry.errors.ReleaseRefused: the stored files of retrieve.lexical (12ab) were altered: delete them"
READY = Judged("ready", was_ready=True)


def status(
    application: str, unit: str = "HEALTHY", replicas: dict[str, int] | None = None, message: str = ""
) -> ApplicationStatusOverview:
    """An application of one deployment, `arm`."""
    states = {ReplicaState(name): count for name, count in ({"RUNNING": 1} if replicas is None else replicas).items()}
    trigger = DeploymentStatusTrigger.UNSPECIFIED
    deployment = DeploymentStatusOverview(DeploymentStatus(unit), trigger, states, message)
    return ApplicationStatusOverview(ApplicationStatus(application), "", 0.0, {"arm": deployment})


def test_an_arm_is_ready_once_all_its_replicas_run():
    assert judge(None, Judged()) == Judged("deploying")
    assert judge(status("DEPLOYING", "UPDATING", {"STARTING": 2}), Judged()) == Judged("deploying")
    assert judge(status("DEPLOYING", "UPDATING", {"STARTING": 1, "RUNNING": 1}), Judged()) == Judged("deploying")
    assert judge(status("RUNNING"), Judged()) == READY


@pytest.mark.parametrize(
    "seen",
    [
        status("RUNNING", "UNHEALTHY", {"STOPPING": 1}),
        status("UNHEALTHY", "UNHEALTHY", {"STARTING": 1}),
        status("RUNNING", "HEALTHY", {"RUNNING": 1, "STARTING": 1}),
        status("RUNNING", "HEALTHY", {}),
        status("DELETING", "UPDATING", {"STOPPING": 1}),
    ],
)
def test_an_arm_that_was_ready_and_is_not_whole_any_more_has_failed(seen: ApplicationStatusOverview):
    judged = judge(seen, READY)
    assert judged.phase == "failed"
    assert "lost" in judged.reason
    assert not judged.final  # Serve starts another replica


def test_an_arm_whose_application_vanished_has_failed():
    assert judge(None, READY).phase == "failed"


def test_it_is_ready_again_once_serve_replaced_the_replica():
    failed = judge(status("UNHEALTHY", "UNHEALTHY", {"STARTING": 1}), READY)
    assert judge(status("RUNNING"), failed) == READY


def test_a_release_that_is_refused_has_failed_at_the_first_attempt_with_its_reason():
    seen = status("DEPLOYING", "UPDATING", {"STARTING": 1}, TRACEBACK.format(error=REFUSED))
    assert judge(seen, Judged()) == Judged("failed", REFUSED.removeprefix("registry.errors."), final=True)


def test_a_store_that_is_away_is_waited_for_and_deployed_again_when_serve_gives_up():
    message = TRACEBACK.format(error="registry.errors.RegistryUnavailable: MLflow at http://m is out of reach")
    waits = judge(status("DEPLOYING", "UPDATING", {"STARTING": 1}, message), Judged())
    assert (waits.phase, waits.again) == ("deploying", False)
    assert "out of reach" in waits.reason
    assert judge(status("DEPLOY_FAILED", "DEPLOY_FAILED", {}, message), waits).again


def test_a_process_that_dies_while_it_loads_has_failed():
    message = "A replica failed to start with exception. Retrying 2 more time(s). Error:\nThe actor died unexpectedly."
    judged = judge(status("DEPLOYING", "UPDATING", {"STARTING": 1}, message), Judged())
    assert (judged.phase, judged.reason, judged.final) == ("failed", "The actor died unexpectedly.", True)


def test_the_root_cause_is_the_last_line_that_names_an_error():
    assert root_cause(TRACEBACK.format(error=REFUSED)).startswith("ReleaseRefused: the stored files")
    assert root_cause("no error here\nhttp: //x") == ""
    assert root_cause("ValueError: first\n\nMemoryError: second\n  at the end") == "MemoryError: second"


def test_the_arms_of_every_rollout_are_wanted_and_none_where_there_is_none():
    traffic = {
        "teas": Traffic("teas", 4, stable=1, canary=2, control=1, rollout=3),
        "ales": Traffic("ales", 9, stable=7, canary=8, rollout=1),
        "rums": Traffic("rums", 1, stable=1),
    }
    arms = wanted_arms(traffic)
    assert {name: arm.version for name, arm in arms.items()} == {
        "teas-r3-canary": 2,
        "teas-r3-control": 1,
        "ales-r1-canary": 8,
    }
