"""palate rollout: start, watch and steer rollouts through the admin routes, and read how they ended."""

from __future__ import annotations

import getpass
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from registry.explain import entry_of, explain
from registry.traffic import Verb
from serving.client import PalateClient
from serving.commands import HomeOption, JsonOption, console, home_of
from serving.commands.rollout_view import (
    progress,
    progress_line,
    progress_mark,
    rollouts_table,
    show_entries,
    show_status,
)
from serving.errors import BadRequest, NotFound, StoreUnavailable

AppArgument = Annotated[str, typer.Argument(help="The app.")]
VersionArgument = Annotated[int, typer.Argument(help="The release's version: `palate releases APP` lists them.", min=1)]
NumberArgument = Annotated[int | None, typer.Argument(help="The rollout's number; default: the newest.", min=1)]
WhyOption = Annotated[str | None, typer.Option("--why", help="Why; kept in the journal. Asked for on a terminal.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who asks; default: this machine's user.")]
IfVersionOption = Annotated[
    int | None, typer.Option("--version", help="Only if this version is the one it is about.", min=1)
]

LOOK_EVERY_S = 1.0
GIVE_UP_AFTER_S = 120.0
"""How long the endpoint may be away while a rollout is followed."""


def register(commands: typer.Typer) -> None:
    group = typer.Typer(help="Start, watch and steer rollouts, and read how they ended.", no_args_is_help=True)
    group.command("status")(status)
    group.command("list")(list_rollouts)
    group.command("start")(start)
    group.command("switch")(switch)
    for verb, command in (
        ("pause", pause), ("resume", resume), ("promote", promote), ("abort", abort), ("rollback", rollback),
    ):  # fmt: skip
        group.command(verb)(command)
    group.command("explain")(tell)
    group.command("report")(report)
    commands.add_typer(group, name="rollout")


def status(app: AppArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What is on its way now, and what serves."""
    with PalateClient.of_home(home_of(home)) as client:
        body = client.rollout(app)
    if as_json:
        console.print_json(data=body)
    else:
        show_status(body, console)


def list_rollouts(
    app: AppArgument,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Past rollouts, newest first: how each ended, and why."""
    with PalateClient.of_home(home_of(home)) as client:
        found = client.rollouts(app, limit)
    if as_json:
        console.print_json(data=found)
    else:
        console.print(rollouts_table(found))


def start(
    app: AppArgument,
    version: VersionArgument,
    why: WhyOption = None,
    by: ByOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end; exit status 1 unless promoted.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a version: its traffic rises step by step while the evidence allows it."""
    with PalateClient.of_home(home_of(home)) as client:
        before = _newest(client, app)
        _command(client, app, _body("start", why, by, version), as_json and not wait)
        if wait:
            _follow(client, app, before, as_json)


def switch(
    app: AppArgument,
    version: VersionArgument,
    why: WhyOption = None,
    by: ByOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version stable at once, without a trial; it is watched, and an alarm told, but nothing is undone."""
    _act(app, _body("switch", why, by, version), home, as_json)


def pause(
    app: AppArgument, why: WhyOption = None, by: ByOption = None, version: IfVersionOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Hold the running rollout at its step. What fails is still rolled back."""
    _act(app, _body("pause", why, by, version), home, as_json)


def resume(
    app: AppArgument, why: WhyOption = None, by: ByOption = None, version: IfVersionOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let a paused rollout go on."""
    _act(app, _body("resume", why, by, version), home, as_json)


def promote(
    app: AppArgument, why: WhyOption = None, by: ByOption = None, version: IfVersionOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make the canary stable now, whatever steps are left."""
    _act(app, _body("promote", why, by, version), home, as_json)


def abort(
    app: AppArgument, why: WhyOption = None, by: ByOption = None, version: IfVersionOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """End the trial. The version may be tried again."""
    _act(app, _body("abort", why, by, version), home, as_json)


def rollback(
    app: AppArgument, why: WhyOption = None, by: ByOption = None, version: IfVersionOption = None,
    home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Take the canary back, or return to the previous release. The version is not tried again until a person asks."""
    _act(app, _body("rollback", why, by, version), home, as_json)


def tell(app: AppArgument, number: NumberArgument = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The story of a rollout: what was decided, when, by whom, why, and on what numbers."""
    with PalateClient.of_home(home_of(home)) as client:
        body = client.rollout_story(app, number or _last(client, app))
    if as_json:
        console.print_json(data=body)
    else:  # told here, in this machine's time zone
        console.print(explain([entry_of(raw) for raw in body["entries"]]), markup=False, highlight=False, end="")


def report(
    app: AppArgument,
    number: NumberArgument = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="The file to write; `-`: standard output. Default: APP-rollout-N.html")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write a rollout as one HTML page with plots, to read in a browser or attach to an incident review."""
    with PalateClient.of_home(home_of(home)) as client:
        number = number or _last(client, app)
        page = client.rollout_report(app, number)
    if str(html) == "-":
        sys.stdout.write(page)
        return
    file = html or Path(f"{app}-rollout-{number}.html")
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"--html {file}: {error.strerror}; name a file that can be written", field="html") from None
    console.print(f"{file} has the report of {app}'s rollout {number}.", markup=False, highlight=False)


def _act(app: str, body: dict[str, Any], home: Path | None, as_json: bool) -> None:
    with PalateClient.of_home(home_of(home)) as client:
        _command(client, app, body, as_json)


def _command(client: PalateClient, app: str, body: dict[str, Any], as_json: bool) -> None:
    answer = client.command_rollout(app, body)
    if as_json:
        console.print_json(data=answer)
    else:
        show_entries(answer, console)


def _body(action: Verb, why: str | None, by: str | None, version: int | None) -> dict[str, Any]:
    if why is None:
        if not sys.stdin.isatty():
            raise BadRequest(f'say why: palate rollout {action} … --why "…"', field="why")
        why = typer.prompt("Why")
    body: dict[str, Any] = {"action": action, "why": why}
    name = by or _user()
    return body | {key: value for key, value in (("by", name), ("version", version)) if value}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return None


def _newest(client: PalateClient, app: str) -> int:
    """The number of the newest rollout; 0 before the first."""
    found = client.rollouts(app, 1)
    return int(found[0]["number"]) if found else 0


def _last(client: PalateClient, app: str) -> int:
    number = _newest(client, app)
    if not number:
        raise NotFound(f'{app} had no rollout yet: palate rollout start {app} VERSION --why "…"', field="number")
    return number


def _follow(client: PalateClient, app: str, before: int, as_json: bool) -> None:
    """Show the first rollout after `before` until it ends. Exit status 1 unless it was promoted."""
    number, away_since = 0, 0.0
    shown: tuple[object, ...] | None = None
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            try:
                body, away_since = client.rollout(app), 0.0
                rollout = body["rollout"]
                if not number and rollout is not None and rollout["number"] > before:
                    number = int(rollout["number"])
                if not number:
                    number = next((r["number"] for r in client.rollouts(app, 1) if r["number"] > before), 0)
                if number and (rollout is None or rollout["number"] != number):
                    break
                if rollout is not None and console.is_terminal:
                    live.update(progress(body))
                elif rollout is not None and not as_json and (mark := progress_mark(rollout)) != shown:
                    console.print(progress_line(rollout), markup=False, highlight=False)
                    shown = mark
            except StoreUnavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > GIVE_UP_AFTER_S:
                    raise
            time.sleep(LOOK_EVERY_S)
    story = client.rollout_story(app, number)
    if as_json:
        console.print_json(data=story)
    else:
        console.print(explain([entry_of(raw) for raw in story["entries"]]), markup=False, highlight=False, end="")
    if story["outcome"] != "promoted":
        raise typer.Exit(1)
