"""What the probes saw, judged: one `Finding` each, with the fix where something is wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

State = Literal["ok", "warning", "failed", "skipped"]

SKEW_WARNING_S, SKEW_FAILED_S = 2.0, 30.0
"""MLflow's signed webhooks are refused beyond minutes, leases and traces mix clocks well before that."""
LOW_DISK_BYTES, FULL_DISK_BYTES = 5 * 2**30, 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """`fix` is empty where nothing needs one. Only `failed` makes the doctor's exit status 1."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Reach:
    """Something that was asked over the network. `problem`: why it did not answer, "" when it did; `skew_s`: how far
    its clock is ahead of ours, None where it does not say."""

    problem: str = ""
    skew_s: float | None = None


def versions(required: Sequence[str], installed: Mapping[str, str]) -> Finding:
    """`required`: the requirements of our distribution without extras; `installed`: canonical name -> version."""
    wrong = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(canonicalize_name(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        fix = "install what is locked: scripts/install, or the image of this version"
        return Finding("versions", "failed", "; ".join(wrong), fix)
    return Finding("versions", "ok", f"{len(required)} libraries are what this Palate was made for")


def home(path: str, problem: str, free_bytes: int, open_files: Sequence[str]) -> list[Finding]:
    """`problem`: why the folder cannot be written; `open_files`: secrets in it that others may read."""
    if problem:
        fix = "give this user the folder (in Kubernetes: fsGroup and an emptyDir), or set PALATE_HOME to another"
        return [Finding("home", "failed", f"{path} cannot be written: {problem}", fix)]
    found = [Finding("home", "ok", f"{path} can be written")]
    gib = free_bytes / 2**30
    if free_bytes < FULL_DISK_BYTES:
        found.append(
            Finding("disk", "failed", f"{gib:.1f} GiB are free at {path}", "free some space, or move PALATE_HOME")
        )
    elif free_bytes < LOW_DISK_BYTES:
        fix = "free some space: a release's components and an index under way may need more"
        found.append(Finding("disk", "warning", f"only {gib:.1f} GiB are free at {path}", fix))
    else:
        found.append(Finding("disk", "ok", f"{gib:.0f} GiB are free at {path}"))
    if open_files:
        names = ", ".join(open_files)
        found.append(Finding("key files", "failed", f"others may read {names}", f"chmod 600 in {path}: {names}"))
    else:
        found.append(Finding("key files", "ok", "only their owner can read them"))
    return found


def mounted_secrets(folder: str, missing: Sequence[str]) -> Finding:
    if missing:
        fix = f"add these keys to the Secret that is mounted at {folder}; python -m serving.cluster.secrets makes one"
        return Finding("secrets", "failed", "; ".join(missing), fix)
    return Finding("secrets", "ok", f"{folder} holds what every process needs")


def database(reach: Reach, schema: str, head: str) -> list[Finding]:
    if reach.problem:
        fix = "see that it runs, that PALATE_DATABASE_URL is right, and that NetworkPolicies let this pod reach it"
        return [Finding("database", "failed", reach.problem, fix)]
    found = [Finding("database", "ok", "it answers")]
    if schema == head:
        found.append(Finding("schema", "ok", f"at {head}"))
    elif schema and schema > head:
        fix = "run the version of Palate that made it, or take it back with that version: palate migrate --down-to"
        found.append(Finding("schema", "failed", f"it is at {schema}, newer than this Palate knows ({head})", fix))
    else:
        found.append(Finding("schema", "failed", f"it is at {schema or 'nothing'}, not {head}", "run palate migrate"))
    found.append(clock("database", reach.skew_s))
    return found


def clock(of: str, skew_s: float | None) -> Finding:
    name = f"clock of the {of}"
    if skew_s is None:
        return Finding(name, "skipped", "it does not tell its time")
    detail = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} ours"
    if abs(skew_s) < SKEW_WARNING_S:
        return Finding(name, "ok", detail)
    fix = "let both machines follow one time server (NTP)"
    return Finding(name, "failed" if abs(skew_s) >= SKEW_FAILED_S else "warning", detail, fix)


def reached(name: str, reach: Reach, fix: str, detail: str = "it answers") -> Finding:
    return Finding(name, "failed", reach.problem, fix) if reach.problem else Finding(name, "ok", detail)


def stable(app: str, problem: str, missing: bool) -> Finding:
    """Whether the registry has a release of an app to serve."""
    name = f"release of {app}"
    if missing:
        return Finding(name, "warning", "it has no release aliased `stable`", f"build one: palate index {app}")
    if problem:
        return Finding(name, "failed", problem, "see to MLflow first")
    return Finding(name, "ok", "the registry has its stable release")


def endpoint(reach: Reach, problems: Mapping[str, str]) -> list[Finding]:
    """`problems`: app -> why the endpoint does not serve it."""
    if reach.problem:
        fix = "see that it runs (palate status; in Kubernetes: kubectl get rayservice), and that PALATE_URL is right"
        return [Finding("endpoint", "failed", reach.problem, fix)]
    fix = "palate releases APP shows what there is; the endpoint's log has why a release does not load"
    unserved = [Finding(f"serving {app}", "failed", why, fix) for app, why in sorted(problems.items())]
    return [Finding("endpoint", "ok", "it answers"), *unserved]


def metrics(text: str, apps: Sequence[str]) -> Finding:
    """`text`: the exposition. Each app that serves says which release does."""
    missing = [app for app in apps if f'palate_release_serving{{app="{app}"' not in text]
    if missing:
        detail = f"no palate_release_serving for {', '.join(missing)}"
        return Finding(
            "metrics", "failed", detail, "see that PROMETHEUS_MULTIPROC_DIR is a folder that processes share"
        )
    return Finding("metrics", "ok", f"{sum(line.startswith('# TYPE palate_') for line in text.splitlines())} families")


def gpus(wanted: Mapping[str, float], there: float | None) -> Finding:
    """`wanted`: app -> GPUs that one replica of it takes; `there`: GPUs to be had, None where nobody can tell."""
    if not wanted:
        return Finding("GPUs", "ok", "no app asks for one")
    asked = ", ".join(f"{app} {count:g}" for app, count in sorted(wanted.items()))
    if there is None:
        return Finding("GPUs", "skipped", f"asked for: {asked}; nobody here can tell how many there are")
    if there < max(wanted.values()):
        fix = "add GPU nodes (a worker group with GPUs), or set num_gpus to 0 in the app's placement"
        return Finding("GPUs", "failed", f"asked for: {asked}; there are {there:g}", fix)
    return Finding("GPUs", "ok", f"asked for: {asked}; there are {there:g}")


def ray(reach: Reach, applications: Mapping[str, str]) -> list[Finding]:
    """`applications`: name -> Serve's status of it."""
    if reach.problem:
        fix = "see that the head runs, and that PALATE_RAY_DASHBOARD and RAY_AUTH_TOKEN are right"
        return [Finding("Ray", "failed", reach.problem, fix)]
    bad = {name: status for name, status in applications.items() if status not in ("RUNNING", "DELETING")}
    if not applications:
        return [Finding("Ray", "failed", "no Serve application runs", "see the RayService's status")]
    if bad:
        detail = ", ".join(f"{name} {status}" for name, status in sorted(bad.items()))
        return [Finding("Ray", "warning", detail, "wait while it deploys; DEPLOY_FAILED says why in the dashboard")]
    return [Finding("Ray", "ok", f"{len(applications)} Serve applications run")]
