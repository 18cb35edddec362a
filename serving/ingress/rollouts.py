"""Releases and rollouts over HTTP, for keys with the scope `admin`: what is on its way, what people ask of it, how past
ones ended.

Reads what the controller wrote (`registry.ports`), and submits commands to it: nothing is decided here. The command
`palate rollout` calls these routes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response

from registry.analysis import Analysis, LiveVerdict
from registry.errors import BadInput, RegistryUnavailable, ReleaseNotFound, ReleaseRefused
from registry.explain import Summary, by_rollout, entry_json, explain, plain, summarize, verdict_of
from registry.plan import RolloutPlan, plan_of, reward_range
from registry.ports import EvidenceStore, Journal, ReleaseStore, TrafficBoard
from registry.report import LiveCounts, make_history, read_evidence, report_html
from registry.rollout import AppState, Rollout
from registry.schema import ReleaseVersion
from registry.traffic import Command, Entry, Traffic
from serving.errors import BadRequest, Conflict, NotFound, StoreUnavailable
from serving.ingress import rollout_docs as docs
from serving.ingress.access import admit, read_body, services_of
from serving.ingress.models import parse
from serving.ingress.problems import trace_id_of
from serving.ingress.rollout_docs import NEEDS_VERSION, RolloutRequest

if TYPE_CHECKING:
    from serving.keys import ApiKey


@dataclass(frozen=True, slots=True)
class Steering:
    """The stores that these routes and the webhook need. `webhook_secret` is what MLflow signs with; None: no webhooks
    are taken."""

    journal: Journal
    board: TrafficBoard
    evidence: EvidenceStore
    releases: ReleaseStore
    webhook_secret: str | None = None


routes = APIRouter()
Found = TypeVar("Found")

HANDLED_WITHIN_S = 3.0
ASK_EVERY_S = 0.1
ROUTER_ALIVE_S = 10.0
MOST_ENTRIES = 10_000
MOST_ROLLOUTS = 500


@routes.get("/v1/apps/{app}/releases", response_class=Response, tags=["rollouts"], responses=docs.RELEASES)
async def list_releases(app: str, request: Request) -> Response:
    """The app's releases, newest first, with aliases, metrics and what their rollouts left in their tags."""
    steering = await _admitted(app, request)

    def read() -> dict[str, Any]:
        traffic = steering.board.traffic().get(app)
        releases = [_release_view(version) for version in steering.releases.versions(app)]
        return {"app": app, "serving": _serving(traffic), "releases": releases}

    return _json(request, await in_thread(read))


@routes.get("/v1/apps/{app}/rollout", response_class=Response, tags=["rollouts"], responses=docs.ROLLOUT)
async def show_rollout(app: str, request: Request) -> Response:
    """What is on its way now: phase, weights, what the evidence says, and who is waiting for whom."""
    steering = await _admitted(app, request)
    now = services_of(request).wall_clock()
    return _json(request, await in_thread(lambda: _status(steering, _live(request), app, now)))


@routes.post("/v1/apps/{app}/rollout", response_class=Response, tags=["rollouts"], responses=docs.COMMAND)
async def command_rollout(app: str, request: Request) -> Response:
    """Start, pause, resume, promote, abort or roll back, or switch `stable` at once. Who asked and why is kept.

    200 with the journal's entries once the controller dealt with it; 202 when it has not yet. 409: it was refused.
    """
    key = await _admin(app, request)
    steering, now = services_of(request).steering, services_of(request).wall_clock()
    wanted = parse(RolloutRequest, await read_body(request))
    version = await in_thread(lambda: _check(steering, app, wanted))
    command = Command(app, wanted.action, _who(key, wanted.by), wanted.why, now, version)
    command_id, running = await in_thread(lambda: _submit(steering, command))
    handled = running and await _wait_handled(steering, command_id)
    entries = await in_thread(lambda: _caused(steering, app, command_id)) if handled else []
    refused = [entry for entry in entries if entry.kind == "refused-command"]
    if refused:
        raise Conflict(refused[-1].why, field="action")
    body = {"command": command_id, "handled": handled, "entries": [entry_json(entry) for entry in entries]}
    if not handled:
        body["note"] = docs.NOT_YET if running else docs.NOBODY
    return _json(request, body, 200 if handled else 202)


@routes.get("/v1/apps/{app}/rollouts", response_class=Response, tags=["rollouts"], responses=docs.ROLLOUTS)
async def list_rollouts(app: str, request: Request) -> Response:
    """The app's rollouts, newest first, `limit` (1..500, default 20) of them: how each ended, and why."""
    steering = await _admitted(app, request)
    limit = _whole(request.query_params.get("limit", "20"), "limit", MOST_ROLLOUTS)
    found = by_rollout(await in_thread(lambda: steering.journal.entries(app, None, MOST_ENTRIES)))
    summaries = [_summary_view(summarize(entries)) for entries in list(found.values())[:limit]]
    return _json(request, {"app": app, "rollouts": summaries})


@routes.get("/v1/apps/{app}/rollouts/{number}", response_class=Response, tags=["rollouts"], responses=docs.STORY)
async def show_story(app: str, number: str, request: Request) -> Response:
    """One rollout: every decision with its evidence, and the story they tell, in the server's local time."""
    steering = await _admitted(app, request)
    entries = await _entries(steering, app, number)
    body = {
        **_summary_view(summarize(entries)),
        "app": app,
        "story": explain(entries),
        "entries": [entry_json(entry) for entry in entries],
    }
    return _json(request, body)


@routes.get(
    "/v1/apps/{app}/rollouts/{number}/report", response_class=Response, tags=["rollouts"], responses=docs.REPORT
)
async def show_report(app: str, number: str, request: Request) -> Response:
    """One rollout as an HTML page with plots, which needs nothing else: for a browser, or an incident review."""
    steering = await _admitted(app, request)
    entries = await _entries(steering, app, number)
    page = await in_thread(lambda: _report(steering, entries))
    headers = {
        "x-trace-id": trace_id_of(request),
        # Nothing in the page runs or is fetched; should a text of people's ever slip through, it stays text.
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
        "x-content-type-options": "nosniff",
    }
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")


@contextmanager
def registry_errors() -> Iterator[None]:
    """Errors of the registry as those of the HTTP face."""
    try:
        yield
    except ReleaseNotFound as error:
        raise NotFound(str(error), field="version") from None
    except BadInput as error:
        raise BadRequest(str(error), field=error.field) from None
    except RegistryUnavailable as error:
        raise StoreUnavailable(str(error)) from None


async def in_thread(call: Callable[[], Found]) -> Found:
    """The stores block; the event loop must not."""
    with registry_errors():
        return await asyncio.to_thread(call)


async def _admin(app: str, request: Request) -> ApiKey:
    key = await admit(request, "admin", app)
    known = services_of(request).router.apps()
    if app not in known:
        raise NotFound(f"there is no app {app!r}; there are {sorted(known)}", field="app")
    return key


async def _admitted(app: str, request: Request) -> Steering:
    await _admin(app, request)
    return services_of(request).steering


def _live(request: Request) -> LiveCounts:
    state = request.app.state
    if not hasattr(state, "live_counts"):
        state.live_counts = LiveCounts(services_of(request).steering.evidence)
    live: LiveCounts = state.live_counts
    return live


def _check(steering: Steering, app: str, wanted: RolloutRequest) -> int | None:
    """The version a command names. Raises NotFound when there is none such, BadRequest when it is missing."""
    if wanted.action not in NEEDS_VERSION:
        return wanted.version  # what the person believes to be on its way; the controller refuses it where it is not
    if wanted.version is None:
        raise BadRequest(f"{wanted.action} needs a version: `palate releases {app}` lists them", field="version")
    try:
        return steering.releases.get(app, wanted.version).version
    except ReleaseNotFound as error:
        raise NotFound(f"{error}: `palate releases {app}` lists what was published", field="version") from None


def _who(key: ApiKey, by: str | None) -> str:
    """The name people give is a claim, the key is a fact: the journal keeps both."""
    of_key = f"key {plain(key.name)[:60] or '-'} {key.id}"
    return f"{by} ({of_key})" if by else of_key


def _submit(steering: Steering, command: Command) -> tuple[int, bool]:
    """(the command's id, whether somebody is there to deal with it)."""
    return steering.journal.submit(command), steering.journal.holder() is not None


async def _wait_handled(steering: Steering, command_id: int) -> bool:
    deadline = time.monotonic() + HANDLED_WITHIN_S
    while not await in_thread(lambda: steering.journal.handled(command_id)):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(ASK_EVERY_S)
    return True


def _caused(steering: Steering, app: str, command_id: int) -> list[Entry]:
    """What the journal says of the command: every entry that it caused carries its id."""
    entries = steering.journal.entries(app, None, 100)
    return [entry for entry in entries if entry.details.get("command") == command_id]


async def _entries(steering: Steering, app: str, number: str) -> list[Entry]:
    rollout = _whole(number, "number", 10**9)
    entries = await in_thread(lambda: steering.journal.entries(app, rollout, MOST_ENTRIES))
    if not entries:
        raise NotFound(f"{app} had no rollout {rollout}: `palate rollout list {app}` names them", field="number")
    return entries


def _report(steering: Steering, entries: Sequence[Entry]) -> str:
    summary = summarize(entries)
    plan, rewards = _plan(steering, summary)
    evidence = read_evidence(steering.evidence, summary.app, summary.rollout)
    return report_html(make_history(entries, evidence, lambda: Analysis(plan, rewards)))


def _plan(steering: Steering, summary: Summary) -> tuple[RolloutPlan, tuple[float, float]]:
    """The plan it was judged by, and the range of rewards: as the releases say, which never change."""
    running = steering.journal.states().get(summary.app)
    if running is not None and running.rollout is not None and running.rollout.id == summary.rollout:
        plan: RolloutPlan | None = running.rollout.plan
    else:
        plan = None
    try:
        if plan is None:
            plan = plan_of(steering.board.release(summary.app, summary.version or 0).release.spec)
        base = steering.board.release(summary.app, summary.base or summary.version or 0)
        return plan, reward_range(base.release.spec)
    except (ReleaseNotFound, ReleaseRefused):
        return plan or RolloutPlan(), (0.0, 1.0)


def _status(steering: Steering, live: LiveCounts, app: str, now: float) -> dict[str, Any]:
    state = steering.journal.states().get(app) or AppState(app)
    traffic = steering.board.traffic().get(app)
    entries = steering.journal.entries(app, None, 100)
    since = now - ROUTER_ALIVE_S
    rollout = state.rollout
    seen: dict[str, Any] = {}
    if rollout is not None:
        requests = live.look(app, rollout.id) if traffic is not None else {}
        seen["requests"] = {arm: {"requests": n.requests, "failed": n.failed} for arm, n in requests.items()}
        seen |= _judged(steering.journal.verdict(app), rollout.id, entries, now)
    return {
        "app": app,
        "controller": steering.journal.holder(),
        "serving": _serving(traffic),
        "stable": state.stable,
        "previous": state.previous,
        "rollout": None if rollout is None else {**_rollout_view(rollout, traffic), **seen},
        "arms": [asdict(arm) for arm in steering.board.arms(app, rollout.id)] if rollout is not None else [],
        "routers": [asdict(report) for report in steering.board.routers(app, since)],
        "quarantined": {str(version): why for version, why in state.quarantined.items()},
        "waiting": {
            "commands": [asdict(c) for c in steering.journal.commands() if c.app == app],
            "aliases": [{"alias": w.alias, "version": w.version} for w in state.alias_writes],
            "tags": [{"version": w.version, "tags": dict(w.tags)} for w in state.tag_writes],
        },
        "last": entry_json(entries[-1]) if entries else None,
    }


def _judged(live: LiveVerdict | None, rollout: int, entries: Sequence[Entry], now: float) -> dict[str, Any]:
    """What the evidence says now, else what it said when something was last decided; and since when it says so."""
    told = [(e.at_s, v) for e in entries if e.rollout == rollout and (v := verdict_of(e)) is not None]
    shadow = None
    if live is not None and live.rollout == rollout:
        told.append((live.at_s, live.verdict))
        shadow = asdict(live.shadow) if live.shadow.requests else None
    if not told:
        return {"verdict": None, "shadow": None}
    at_s, verdict = told[-1]
    return {"verdict": {**asdict(verdict), "at_s": at_s, "age_s": max(0.0, now - at_s)}, "shadow": shadow}


def _rollout_view(rollout: Rollout, traffic: Traffic | None) -> dict[str, Any]:
    return {
        "number": rollout.id,
        "version": rollout.version,
        "base": rollout.base,
        "phase": rollout.phase,
        "step": rollout.step + 1 if rollout.phase == "step" else None,
        "steps_percent": list(rollout.plan.steps_percent),
        "percent": traffic.canary_percent if traffic is not None and traffic.rollout == rollout.id else 0.0,
        "paused": rollout.paused,
        "alarm_only": rollout.alarm_only,
        "alarmed": rollout.alarmed,
        "started_s": rollout.started_s,
        "since_s": rollout.since_s,
        "who": rollout.who,
        "why": rollout.why,
    }


def _serving(traffic: Traffic | None) -> dict[str, Any] | None:
    """The versions that answer users now, by their share; None where no controller took the app on."""
    if traffic is None:
        return None
    shares: dict[str, float] = {}
    for version, percent in (
        (traffic.stable, traffic.stable_percent),
        (traffic.canary, traffic.canary_percent),
        (traffic.control, traffic.control_percent),
    ):
        if version is not None and percent > 0:
            shares[str(version)] = round(shares.get(str(version), 0.0) + percent, 2)
    return {"stable": traffic.stable, "percent": shares}


def _release_view(version: ReleaseVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": sorted(version.aliases),
        "created": _utc(version.created_s),
        "digest": version.release.digest,
        "metrics": dict(version.release.metrics),
        "tags": dict(version.tags),
    }


def _summary_view(summary: Summary) -> dict[str, Any]:
    return {
        "number": summary.rollout,
        "version": summary.version,
        "base": summary.base,
        "outcome": summary.outcome,
        "headline": summary.headline,
        "reason": summary.reason,
        "started": _utc(summary.started_s),
        "ended": None if summary.ended_s is None else _utc(summary.ended_s),
        "who": summary.who,
        "why": summary.why,
    }


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


def _whole(text: str, field: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 11) or not 1 <= int(text) <= most:
        raise BadRequest(f"{field} must be a whole number from 1 to {most}, not {text!r}", field=field)
    return int(text)


def _json(request: Request, body: Mapping[str, Any], status: int = 200) -> Response:
    headers = {"x-trace-id": trace_id_of(request)}
    return Response(orjson.dumps(body, default=_plain_json), status, headers, media_type="application/json")


def _plain_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)
