"""The story of a rollout, told from its journal: what was decided, when, by whom, why, and on what numbers.

Pure. The admin routes, `palate rollout explain` and the report tell it; it reads nothing but the entries it is given,
so it says the same whoever asks, and long after the evidence is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, tzinfo
from typing import Any, Literal

from registry.analysis.verdict import Verdict, verdict_from_json
from registry.traffic import Entry

Outcome = Literal[
    "promoted", "rolled back", "aborted", "superseded", "refused", "baking", "paused", "loading", "running", "none"
]

_AFTER: Mapping[str, Outcome] = {
    "started": "loading",
    "ready": "running",
    "step": "running",
    "paused": "paused",
    "resumed": "running",
    "promoted": "baking",
    "switched": "baking",
    "baked": "promoted",
    "rolled-back": "rolled back",
    "aborted": "aborted",
    "superseded": "superseded",
    "refused": "refused",
}
"""Where an entry of this kind leaves its rollout; the other kinds change nothing."""

ENDED: frozenset[Outcome] = frozenset({"promoted", "rolled back", "aborted", "superseded", "refused"})

_ENDS: Mapping[Outcome, str] = {
    "promoted": "was promoted",
    "rolled back": "was rolled back",
    "aborted": "was aborted",
    "superseded": "was superseded",
    "refused": "was refused",
    "baking": "serves as stable and is still watched",
    "paused": "is paused",
    "loading": "is being loaded",
    "running": "is on trial",
    "none": "was not tried",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """A rollout in a few words. Times are Unix seconds; `ended_s` is None while it runs, `percent` what the last step
    gave the canary. `who` and `why` began it, `ended_by` and `reason` are those of the entry that decided its outcome.
    """

    app: str
    rollout: int
    outcome: Outcome
    version: int | None
    base: int | None
    started_s: float
    ended_s: float | None
    who: str
    why: str
    ended_by: str
    reason: str
    percent: float | None

    @property
    def headline(self) -> str:
        """How it ended, as one sentence."""
        version = "a version" if self.version is None else f"version {self.version}"
        took = "" if self.ended_s is None else f" after {duration(self.ended_s - self.started_s)}"
        by = f" by {self.ended_by}" if self.ended_by and self.outcome in ENDED | {"paused"} else ""
        return f"{self.app}, rollout {self.rollout}: {version} {_ENDS[self.outcome]}{took}{by}."


def summarize(entries: Sequence[Entry]) -> Summary:
    """Of one rollout's entries, oldest first, at least one."""
    first = next((e for e in entries if e.kind in ("started", "switched", "refused")), entries[0])
    outcome: Outcome = "none"
    decided = first
    paused_from: Outcome = "running"
    for entry in entries:
        if entry.version not in (None, first.version):
            continue  # what was refused meanwhile has no rollout of its own
        after = _after(entry, outcome)
        if after is None or (outcome in ENDED and after not in ENDED):
            continue
        if after == "paused" and outcome != "paused":
            paused_from = outcome
        outcome = paused_from if entry.kind == "resumed" else after
        decided = entry
    percents = [p for e in entries if (p := percent_of(e)) is not None and e.kind == "step"]
    return Summary(
        app=first.app,
        rollout=first.rollout,
        outcome=outcome,
        version=next((e.version for e in (first, *entries) if e.version is not None), None),
        base=_base(first),
        started_s=first.at_s,
        ended_s=decided.at_s if outcome in ENDED else None,
        who=plain(first.who),
        why=plain(first.why),
        ended_by=plain(decided.who),
        reason=plain(decided.why),
        percent=percents[-1] if percents else None,
    )


def _after(entry: Entry, before: Outcome) -> Outcome | None:
    """Where an entry leaves its rollout; None: where it was."""
    if entry.kind in ("aborted", "superseded") and entry.details.get("phase") == "baking":
        return "promoted"  # only the watching ended: the version stays stable
    if entry.kind == "promoted" and entry.details.get("bake_s") == 0:
        return "promoted"
    if entry.kind == "ready" and before == "baking":
        return None
    return _AFTER.get(entry.kind)


def _base(first: Entry) -> int | None:
    """The version it is compared with, as the entry that began it says."""
    base = first.details.get("base", first.details.get("previous"))
    return base if isinstance(base, int) else None


def by_rollout(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """The entries of each rollout, newest rollout first; those that belong to none are left out."""
    grouped: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.rollout:
            grouped.setdefault(entry.rollout, []).append(entry)
    return dict(sorted(grouped.items(), reverse=True))


def explain(entries: Sequence[Entry], zone: tzinfo | None = None) -> str:
    """The story of one rollout, in lines. Clock times are those of `zone`, None: of this machine."""
    if not entries:
        return "Nothing is written down of this rollout.\n"
    summary = summarize(entries)
    lines = [summary.headline]
    if summary.reason and summary.outcome != "loading":
        lines.append(f"Why: {_sentence(summary.reason)}")
    against = "" if summary.base is None else f", against version {summary.base}"
    lines.append(f"It began on {clock(summary.started_s, zone, date=True)}{against}, by {summary.who or 'nobody'}.")
    lines.append("")
    day = ""
    for entry in entries:
        today = clock(entry.at_s, zone, date=True)[:10]
        if today != day and day:
            lines.append(today)
        day = today
        lines += _told(entry, summary.started_s, zone)
    return "\n".join(lines) + "\n"


def _told(entry: Entry, started_s: float, zone: tzinfo | None) -> list[str]:
    after = entry.at_s - started_s
    by = f"{plain(entry.who)}: " if entry.who else ""
    what = f"{title(entry):<22} {by}{_sentence(plain(entry.why))}"
    lines = [f"{clock(entry.at_s, zone)} {after:+9.1f} s  {what}".rstrip()]
    verdict = verdict_of(entry)
    if verdict is not None:
        indent = " " * 22
        said = "" if verdict.sentence in entry.why else f"; {plain(verdict.sentence)}"
        lines.append(f"{indent}evidence: {_sentence(_counts(verdict) + said)}")
        told = [g for g in verdict.guards if g.state in ("Fail", "Error") and g.sentence not in verdict.sentence]
        lines += [f"{indent}{guard.name}: {_sentence(plain(guard.sentence))}" for guard in told]
    return lines


def _counts(verdict: Verdict) -> str:
    return f"{verdict.state} after {verdict.canary_requests:,} canary and {verdict.control_requests:,} control requests"


def title(entry: Entry) -> str:
    """What happened, in two or three words: 'step to 25 percent'."""
    percent = percent_of(entry)
    if entry.kind == "step" and percent is not None:
        return f"step to {percent:g} percent"
    return entry.kind.replace("-", " ")


def percent_of(entry: Entry) -> float | None:
    """The canary's share from this entry on, 0..100; None where the entry does not say."""
    percent = entry.details.get("percent")
    return float(percent) if isinstance(percent, int | float) and not isinstance(percent, bool) else None


def verdict_of(entry: Entry) -> Verdict | None:
    """The verdict that an entry holds as JSON in its details; None where it holds none that can be read."""
    return verdict_from_json(entry.details.get("verdict"))


def entry_json(entry: Entry) -> dict[str, Any]:
    """The entry as plain JSON values; `entry_of` is its inverse."""
    return asdict(entry)


def entry_of(raw: Mapping[str, Any]) -> Entry:
    names = {field.name for field in fields(Entry)}
    return Entry(**{name: value for name, value in raw.items() if name in names})


def clock(at_s: float, zone: tzinfo | None = None, *, date: bool = False) -> str:
    """10:15:03, with the date and the offset from UTC if asked: 2026-11-21 10:15:03 +0900."""
    at = datetime.fromtimestamp(at_s, zone) if zone is not None else datetime.fromtimestamp(at_s).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S %z" if date else "%H:%M:%S")


def duration(seconds: float) -> str:
    """0.8 s, 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    raise AssertionError(seconds)


def plain(text: str) -> str:
    """People's text on one line, without characters that steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _sentence(text: str) -> str:
    return text if not text or text[-1] in ".!?…" else f"{text}."
