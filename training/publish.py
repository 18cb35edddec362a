"""From a release that was built and judged to a version in the registry: lineage, metrics, tags, and maybe an alias.

`training.run` calls `publish`; the alias that has to wait for a trial to end is given by `training.learner`.
What a candidate may get is decided by `choose_alias`, which is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from registry.ports import Journal, ReleaseStore
from registry.rollout import AppState
from registry.schema import Release, ReleaseVersion
from training.index import BuiltRelease
from training.lineage import trained_key
from training.runs import Run, Runs, Status

CANARY, STABLE = "canary", "stable"
TAG_GATES, TAG_WHY, TAG_RUN, TAG_CANARY = (
    "palate.gates",
    "palate.gates_why",
    "palate.trained_by",
    "palate.canary",
)
MAX_TAG_CHARS = 1_000

Give = Literal["canary", "later", "none"]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gates say of a candidate. `why` is one sentence; `metrics` are the candidate's figures by their names in
    the release; `report` is the whole story as JSON; `compared_with` the version it was compared with."""

    passed: bool
    why: str
    compared_with: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """`lineage` is what the run adds to the build's. `canary`: app.yaml lets a candidate that passes be tried."""

    built: BuiltRelease
    judged: Judged
    lineage: Mapping[str, str]
    metrics: Mapping[str, float]
    canary: bool


@dataclass(frozen=True, slots=True)
class Published:
    """`give` is what the alias `canary` did; `why` says so in a sentence."""

    version: int
    status: Status
    give: Give
    why: str


def with_lineage(release: Release, candidate: Candidate) -> Release:
    """The release as it is published; its digest, over spec and components, stays."""
    return replace(
        release,
        metrics={**release.metrics, **candidate.metrics, **candidate.judged.metrics},
        lineage={**release.lineage, **candidate.lineage},
    )


def lineage_of_components(made: Mapping[str, str]) -> dict[str, str]:
    """`made`: component -> the training that made it."""
    return {trained_key(component): training for component, training in made.items()}


def publish(candidate: Candidate, run: Run, runs: Runs, releases: ReleaseStore, journal: Journal) -> Published:
    """Register the candidate, tag it, and give it what it earned. Raises RunFenced before anything is given when the
    run lost its lease; safe to repeat after a kill."""
    judged = candidate.judged
    runs.renew(run)
    version = releases.publish(with_lineage(candidate.built.release, candidate), candidate.built.folders)
    tags = {
        TAG_GATES: "passed" if judged.passed else "failed",
        TAG_WHY: judged.why[:MAX_TAG_CHARS],
        TAG_RUN: str(run.id),
    }
    runs.renew(run)
    releases.set_tags(run.app, version.version, tags)
    if not judged.passed:
        return Published(version.version, "gates-failed", "none", f"no alias: {judged.why}")
    if not candidate.canary:
        return Published(version.version, "published", "none", f"no alias: train.*.canary of {run.app} is not set")
    give, why = give_canary(releases, journal, version, judged.compared_with, runs.holding(run))
    status: Status = "published" if give == "canary" else "waiting" if give == "later" else "superseded"
    return Published(version.version, status, give, why)


def give_canary(
    releases: ReleaseStore,
    journal: Journal,
    version: ReleaseVersion,
    compared_with: int,
    lease: AbstractContextManager[None],
) -> tuple[Give, str]:
    """Look at the aliases and the rollouts as they are now, and act, all under `lease`."""
    app = version.release.app
    releases.aliases(app)  # MLflow that is slow or away is waited for here, where nobody waits for us
    with lease:
        aliases = releases.aliases(app)
        give, why = choose_alias(version.version, compared_with, aliases, journal.states().get(app))
        if give == "canary" and aliases.get(CANARY) != version.version:
            releases.set_alias(app, CANARY, version.version)
    releases.set_tags(app, version.version, {TAG_CANARY: why[:MAX_TAG_CHARS]})
    return give, why


def choose_alias(
    version: int, compared_with: int, aliases: Mapping[str, int], state: AppState | None
) -> tuple[Give, str]:
    """What a candidate gets that passed its gates against `compared_with`. `state` is the controller's of the app,
    None where no controller looks after it."""
    stable = {aliases.get(STABLE), compared_with if state is None or state.stable is None else state.stable}
    if version in stable:
        return "none", f"version {version} is stable already"
    if stable != {compared_with}:
        now = next((v for v in stable if v not in (None, compared_with)), "gone")
        return "none", f"superseded: it was compared with version {compared_with}, and stable is {now} now"
    if state is not None and version in state.quarantined:
        return "none", f"it was rolled back before ({state.quarantined[version]}): set the alias by hand to try again"
    on_trial = aliases.get(CANARY)
    if on_trial == version:
        return "canary", "given the alias canary"
    if on_trial is not None:
        return "later", f"waiting: version {on_trial} is on trial"
    if state is not None and (state.rollout is not None or state.alias_writes):
        return "later", "waiting: a rollout is being brought to its end"
    return "canary", "given the alias canary"
