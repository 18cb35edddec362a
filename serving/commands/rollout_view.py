"""How `palate rollout` shows what the admin routes say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from registry.explain import duration, entry_of, plain, title

COLOURS = {"promoted": "green", "rolled back": "red", "refused": "red"}
STATES = {"Pass": "green", "Fail": "bold red", "Error": "red", "Inconclusive": "yellow"}


def show_status(body: Mapping[str, Any], console: Console) -> None:
    serving, rollout = body["serving"], body["rollout"]
    if serving is None:
        console.print(f"[bold]{body['app']}[/]: no controller has taken it on; routers follow the alias `stable`.")
    else:
        shares = ", ".join(f"version {v} {percent:g} %" for v, percent in serving["percent"].items())
        console.print(f"[bold]{body['app']}[/]: stable is version {serving['stable']} ({shares})", highlight=False)
    if rollout is not None:
        console.print(progress_table(body))
    elif body["last"] is not None:
        last = entry_of(body["last"])
        version = "" if last.version is None else f" version {last.version}"
        line = f"nothing is on its way; the last entry: {title(last)}{version}: {plain(last.why)}"
        console.print(line, markup=False, highlight=False)
    else:
        console.print("nothing is on its way, and nothing ever was.")
    for line in _worries(body):
        console.print(f"[yellow]![/] {escape(line)}", highlight=False)


def progress_table(body: Mapping[str, Any]) -> Table:
    """The running rollout as a table of two columns."""
    rollout = body["rollout"]
    table = Table(title=None, box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    by = f"{plain(rollout['who'])}: {plain(rollout['why'])}"
    table.add_row(f"rollout {rollout['number']}", f"version {rollout['version']} against {rollout['base']}")
    table.add_row("asked for by", escape(by))
    table.add_row("phase", _phase(rollout))
    table.add_row("canary's share", f"{rollout['percent']:g} %")
    for arm, seen in rollout["requests"].items():
        failed = f", [red]{seen['failed']:,} failed[/]" if seen["failed"] else ""
        table.add_row(f"{arm} requests", f"{seen['requests']:,}{failed}")
    verdict = rollout["verdict"]
    if verdict is not None:
        style = STATES.get(verdict["state"], "bold")
        table.add_row("last verdict", f"[{style}]{verdict['state']}[/] {escape(plain(verdict['sentence']))}")
    return table


def progress_line(rollout: Mapping[str, Any]) -> str:
    """The same on one line that changes only when something happens, for a log."""
    verdict = rollout["verdict"]
    said = f"; {verdict['state']}: {plain(verdict['sentence'])}" if verdict is not None else ""
    return f"rollout {rollout['number']}, version {rollout['version']}: {_stage(rollout)}{said}"


def rollouts_table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("rollout", "version", "outcome", "began (UTC)", "by", "why it ended so", box=None)
    for one in found:
        colour = COLOURS.get(one["outcome"], "yellow")
        version = f"{one['version']} against {one['base']}" if one["base"] is not None else str(one["version"])
        table.add_row(
            str(one["number"]), version, f"[{colour}]{one['outcome']}[/]", one["started"][:19].replace("T", " "),
            escape(plain(one["who"])), escape(plain(one["reason"])),
        )  # fmt: skip
    return table


def show_entries(answer: Mapping[str, Any], console: Console) -> None:
    """What a command caused, or that it waits."""
    for entry in (entry_of(raw) for raw in answer["entries"]):
        version = "" if entry.version is None else f" version {entry.version}"
        line = f"{entry.app}: {title(entry)}{version}, by {plain(entry.who)}: {plain(entry.why)}"
        console.print(line, markup=False, highlight=False)
    if "note" in answer:
        console.print(f"[yellow]![/] {escape(answer['note'])}", highlight=False)


def _phase(rollout: Mapping[str, Any]) -> str:
    marks = [text for name, text in (("paused", "[yellow]paused[/]"), ("alarmed", "[red]alarm[/]")) if rollout[name]]
    since = f"for {duration(max(0.0, time.time() - rollout['since_s']))}"
    return ", ".join([_stage(rollout), since, *marks])


def _stage(rollout: Mapping[str, Any]) -> str:
    if rollout["step"] is None:
        return str(rollout["phase"])
    steps = rollout["steps_percent"]
    return f"step {rollout['step']} of {len(steps)} ({steps[rollout['step'] - 1]:g} %)"


def _worries(body: Mapping[str, Any]) -> list[str]:
    """What a person should know, and maybe act upon."""
    lines = []
    if body["controller"] is None:
        lines.append("no controller is running: nothing is decided until one does (`palate up` starts one)")
    waiting = body["waiting"]
    if waiting["commands"]:
        lines.append(f"commands that wait: {', '.join(c['verb'] for c in waiting['commands'])}")
    if waiting["aliases"] or waiting["tags"]:
        lines.append(f"{len(waiting['aliases']) + len(waiting['tags'])} writes wait for MLflow")
    lines += [
        f"the {arm['arm']} arm failed: {plain(arm['reason'])}" for arm in body["arms"] if arm["phase"] == "failed"
    ]
    lines += [f"router {r['router']}: {plain(r['problem'])}" for r in body["routers"] if r["problem"]]
    lines += [f"version {v} is quarantined: {plain(why)}" for v, why in body["quarantined"].items()]
    return lines
