"""What Serve's status says about an arm: is it being deployed, ready, or failed, and why. Pure; the deployer asks it.

Serve knows a replica only as healthy or not and explains in prose around a traceback; a person wants to read the one
line of it that names the fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from registry.traffic import ArmPhase

PASSING = frozenset({"RegistryUnavailable", "StoreUnavailable", "DeadlineExceeded", "TimeoutError", "ConnectionError"})
"""Errors after which a release may load a moment later."""
LOST = "a replica was lost: its process ended, or no longer answers"
ERROR_LINE = re.compile(r"(?:[a-z_]\w*\.)*(?P<kind>[A-Z]\w*): \S.*")


@dataclass(frozen=True, slots=True)
class Judged:
    """`final`: it failed for good. `again`: it has to be deployed again, since Serve has given up."""

    phase: ArmPhase = "deploying"
    reason: str = ""
    final: bool = False
    again: bool = False
    was_ready: bool = False


def judge(status: ApplicationStatusOverview | None, before: Judged) -> Judged:
    """The arm now. `status` is None where Serve does not know its application (yet)."""
    if status is None:
        return Judged("failed", "its application was deleted") if before.was_ready else Judged()
    if _is_ready(status):
        return Judged("ready", was_ready=True)
    if before.was_ready:
        # Not final of itself: Serve starts another replica.
        return Judged("failed", _crash(status), was_ready=True)
    reason = _refusal(status)
    kind = reason.partition(":")[0]
    if kind in PASSING:
        return Judged("deploying", reason, again=status.status == "DEPLOY_FAILED")
    if reason or status.status == "DEPLOY_FAILED":
        return Judged("failed", reason or _line(status.message) or "Serve could not deploy it", final=True)
    return Judged()


def root_cause(message: str) -> str:
    """The last line of a traceback that names an error ("ReleaseRefused: the stored files of …"), "" for none."""
    found = ""
    for line in message.splitlines():
        if match := ERROR_LINE.fullmatch(line.rstrip()):
            found = match["kind"] + line.rstrip()[match.end("kind") :]
    return found


def _is_ready(status: ApplicationStatusOverview) -> bool:
    return status.status == "RUNNING" and all(_whole(unit) for unit in status.deployments.values())


def _refusal(status: ApplicationStatusOverview) -> str:
    """Why a replica could not start, "" while none has failed to. Serve says so before it gives up trying."""
    for unit in status.deployments.values():
        if "rror:\n" in unit.message or unit.status == "DEPLOY_FAILED":
            return root_cause(unit.message) or _line(unit.message.partition("rror:\n")[2] or unit.message)
    return ""


def _crash(status: ApplicationStatusOverview) -> str:
    lost = [name for name, unit in status.deployments.items() if not _whole(unit)]
    return f"{LOST} ({', '.join(sorted(lost))})" if lost else LOST


def _whole(unit: DeploymentStatusOverview) -> bool:
    return unit.status == "HEALTHY" and set(unit.replica_states) == {"RUNNING"}


def _line(text: str, limit: int = 300) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:limit]
