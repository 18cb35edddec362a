"""The report of a rollout: one HTML file that needs nothing else, to read in a browser or attach to an incident review.

The admin route and `palate rollout report` write it. Whatever people or models said is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from html import escape

from registry.analysis.verdict import GuardResult
from registry.explain import clock, duration, plain, title, verdict_of
from registry.report import plots
from registry.report.history import History, is_over
from registry.report.style import STYLE
from registry.traffic import LOST, OVERLOADED, RAISED, TIMED_OUT, Entry, TrialArm

LOOKS = {"promoted": "good", "rolled back": "bad", "refused": "bad", "aborted": "warn", "superseded": "warn"}
FAILED = {RAISED: "raised", TIMED_OUT: "timed out", OVERLOADED: "overloaded", LOST: "lost its replica"}
ZOOM_FROM_S = 180.0


def report_html(history: History, zone: tzinfo | None = None) -> str:
    """The whole document. Clock times are those of `zone`, None: of this machine."""
    summary = history.summary
    name = f"{summary.app}, rollout {summary.rollout}"
    body = "".join(
        [
            _header(history),
            _section("Facts", _facts(history, zone)),
            _section("Traffic", f'<div class="wide">{_traffic(history)}</div>'),
            _section("Evidence", _evidence(history)),
            _section("Guards at the decision", _guards(history)),
            _section("Journal", _journal(history, zone)),
        ]
    )
    made = f"Times are {clock(summary.started_s, zone, date=True)[-5:]} from UTC. Judged anew from the stored evidence."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{_text(name)}: {_text(summary.outcome)}</title><style>{STYLE}</style></head>'
        f"<body><main>{body}<footer>Palate rollout report. {_text(made)}</footer></main></body></html>\n"
    )


def _header(history: History) -> str:
    summary = history.summary
    why = f'<p class="why">{_text(summary.reason)}</p>' if summary.reason else ""
    return (
        f'<header><p class="pill {LOOKS.get(summary.outcome, "plain")}">{_text(summary.outcome)}</p>'
        f"<h1>{_text(summary.headline)}</h1>{why}</header>"
    )


def _facts(history: History, zone: tzinfo | None) -> str:
    summary, canary, control = history.summary, history.tally("canary"), history.tally("control")
    until = history.end_s if summary.ended_s is None else summary.ended_s
    kinds = ", ".join(f"{n:,} {FAILED[k]}" for k, n in sorted(canary.outcomes.items()) if k in FAILED)
    avoided = canary.failed + control.failed
    rows = {
        "Version on trial": _version(summary.version),
        "Compared with": _version(summary.base),
        "Began": f"{clock(summary.started_s, zone, date=True)}, by {summary.who or 'nobody'}: {summary.why or '-'}",
        "Duration": duration(until - summary.started_s) + ("" if is_over(history) else ", and it goes on"),
        "Highest step": "none" if summary.percent is None else f"{summary.percent:g} percent",
        "Requests": f"{canary.requests:,} canary, {control.requests:,} control",
        "Failed on the canary": f"{canary.failed:,}" + (f" ({kinds})" if kinds else ""),
        "Users' errors avoided": f"{avoided:,}: stable answered in the place of an arm" if avoided else "none needed",
    }
    if (first := history.first_failure_s) is not None:
        rows["First bad answer"] = f"{clock(first, zone)}, {duration(first - summary.started_s)} after the start"
    if (zero := history.time_to_zero_s) is not None:
        rows["Time to zero"] = f"{zero:.2f} s, from the first bad answer to the last canary request"
    if (decided := history.decision_to_zero_s) is not None:
        rows["Decision to zero"] = f"{decided:.2f} s, from the decision to the last canary request"
    if (agreed := history.agreement) is not None:
        shadow = history.tally("shadow")
        rows["Shadow"] = f"{shadow.requests:,} mirrored, {100 * agreed:.1f} percent with the same first result"
    lines = (f'<tr><th scope="row">{_text(k)}</th><td>{_text(v)}</td></tr>' for k, v in rows.items())
    return f'<table class="facts"><tbody>{"".join(lines)}</tbody></table>'


def _traffic(history: History) -> str:
    parts = [plots.weights(history)]
    if any(history.blocks.values()):
        parts.append(plots.failures(history))
        if history.end_s - history.start_s > ZOOM_FROM_S and history.time_to_zero_s is not None:
            parts.append(plots.failures(history, zoom=True))
    return "".join(parts)


def _evidence(history: History) -> str:
    guards = sorted(history.guards().items(), key=lambda one: WORST_FIRST.index(one[1][-1][1].state))
    figures = [plots.guard(name, series, history) for name, series in guards]
    if not figures:
        return "<p>No request reached an arm, or none was counted.</p>"
    legend = (
        '<p class="legend"><span class="key canary"></span>canary <span class="key control"></span>control; '
        "shaded: confidence limits that hold at all times together; upright lines: decisions</p>"
    )
    return f'{legend}<div class="cards">{"".join(figures)}</div>'


def _guards(history: History) -> str:
    verdict = history.last_verdict
    if verdict is None:
        return "<p>No verdict was reached.</p>"
    rows = [
        [_state(g.state), _text(g.name), _numbers(g, "canary"), _numbers(g, "control"),
         f"{_evalue(g.evidence)} of {_evalue(g.fails_at)}", _text(g.sentence)]
        for g in sorted(verdict.guards, key=lambda g: WORST_FIRST.index(g.state))
    ]  # fmt: skip
    counts = f"{verdict.canary_requests:,} canary and {verdict.control_requests:,} control requests"
    told = f"<p>{_state(verdict.state)} {_text(verdict.sentence)} <small>({counts})</small></p>"
    heads = ["State", "Guard", "Canary", "Control", "Evidence against it", "What it says"]
    return told + _table("Guards", heads, rows)


def _numbers(result: GuardResult, arm: TrialArm) -> str:
    value = plots.estimate(result, arm)
    if value is None:
        return "-"
    low, high = plots.limits(result, arm)
    text = plots.number(result.name, value)
    if low is None or high is None:
        return _text(text)
    between = f"{plots.number(result.name, low)} to {plots.number(result.name, high)}"
    return f"{_text(text)} <small>{_text(between)}</small>"


def _evalue(value: float) -> str:
    return (
        f"{value:.3g}"
        if value < 100
        else f"{value:,.0f}"
        if value < 1e6
        else "beyond doubt"
        if math.isinf(value)
        else f"{value:.0e}"
    )


def _journal(history: History, zone: tzinfo | None) -> str:
    rows = [
        [f"<time>{_text(clock(e.at_s, zone))}</time>", f"+{_text(duration(e.at_s - history.summary.started_s))}",
         _text(title(e)), _text(plain(e.who)), _why(e)]
        for e in history.entries
    ]  # fmt: skip
    return _table("Journal", ["Time", "After", "What", "Who", "Why"], rows)


def _why(entry: Entry) -> str:
    verdict = verdict_of(entry)
    if verdict is None or verdict.sentence in entry.why:
        return _text(plain(entry.why))
    return f"{_text(plain(entry.why))}<br><small>{_state(verdict.state)} {_text(verdict.sentence)}</small>"


def _table(label: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f'<th scope="col">{_text(h)}</th>' for h in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{body}</section>"


WORST_FIRST = ("Fail", "Error", "Inconclusive", "Pass")
STATES: Mapping[str, str] = {"Pass": "good", "Fail": "bad", "Error": "bad", "Inconclusive": "plain"}


def _state(state: str) -> str:
    return f'<span class="state {STATES.get(state, "plain")}">{_text(state)}</span>'


def _version(version: int | None) -> str:
    return "-" if version is None else f"version {version}"


def _text(value: str) -> str:
    return escape(value, quote=True)
