"""How `palate rollout` shows what the admin routes say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
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
        console.print(progress(body))
    elif body["last"] is not None:
        last = entry_of(body["last"])
        version = "" if last.version is None else f" version {last.version}"
        line = f"nothing is on its way; the last entry: {title(last)}{version}: {plain(last.why)}"
        console.print(line, markup=False, highlight=False)
    else:
        console.print("nothing is on its way, and nothing ever was.")
    for line in _worries(body):
        console.print(f"[yellow]![/] {escape(line)}", highlight=False)


def progress(body: Mapping[str, Any]) -> RenderableType:
    """The running rollout, and below it what each guard sees."""
    verdict = body["rollout"]["verdict"]
    if verdict is None or not verdict["guards"]:
        return _rollout_table(body)
    said = [f"  {escape(plain(guard['sentence']))}" for guard in verdict["guards"]]
    return Group(_rollout_table(body), "", _guards_table(verdict["guards"]), *said)


def _rollout_table(body: Mapping[str, Any]) -> Table:
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
    shadow = rollout["shadow"]
    if shadow is not None and shadow["compared"]:
        agreed = f"{shadow['agreed']:,} of {shadow['compared']:,} answers ({shadow['agreed'] / shadow['compared']:.1%})"
        table.add_row("shadow agreed on", agreed)
    verdict = rollout["verdict"]
    if verdict is not None:
        style = STATES.get(verdict["state"], "bold")
        since = f" [dim](since {duration(verdict['age_s'])})[/]"
        table.add_row("verdict", f"[{style}]{verdict['state']}[/] {escape(plain(verdict['sentence']))}{since}")
    return table


def _guards_table(guards: Sequence[Mapping[str, Any]]) -> Table:
    """Estimates with the limits they are within at all times."""
    table = Table("guard", "state", "canary", "control", "evidence / fails at", box=None, pad_edge=False)
    for guard in guards:
        # What has no end was sent as null
        evidence = "∞" if guard["evidence"] is None else f"{guard['evidence']:.3g}"
        table.add_row(
            guard["name"], f"[{STATES.get(guard['state'], 'bold')}]{guard['state']}[/]", _estimate(guard, "canary"),
            _estimate(guard, "control"), f"{evidence} / {guard['fails_at']:.3g}",
        )  # fmt: skip
    return table


def _estimate(guard: Mapping[str, Any], arm: str) -> str:
    value, low, high = (guard[name] for name in (arm, f"{arm}_low", f"{arm}_high"))
    if value is None:
        return "-"
    limits = ["?" if limit is None else f"{limit:.3g}" for limit in (low, high)]
    return f"{value:.3g} ({limits[0]}..{limits[1]})"


def progress_mark(rollout: Mapping[str, Any]) -> tuple[object, ...]:
    """Changes only when something happens: then a line is worth its place in a log."""
    verdict = rollout["verdict"]
    return _stage(rollout), rollout["paused"], rollout["alarmed"], verdict and verdict["state"]


def progress_line(rollout: Mapping[str, Any]) -> str:
    """The same on one line."""
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
