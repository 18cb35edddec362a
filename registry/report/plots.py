"""The plots of a report: weights, failures and the guards' confidence bands over time, in seconds from its beginning.

Called by `registry.report.page`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape

from registry.analysis.verdict import GuardResult
from registry.explain import duration
from registry.report.history import History, shares
from registry.report.svg import Plot, ticks
from registry.traffic import FAILURES, Block, TrialArm

BINS = 90
ZOOM_S = 60.0
WIDE = 920
ARMS: tuple[TrialArm, ...] = ("control", "canary")
"""Drawn in this order: the canary lies on top."""


def weights(history: History) -> str:
    changes = [(at - history.start_s, new, control) for at, new, control in shares(history)]
    version = history.summary.version
    top = 100.0 if any(new == 100 for _, new, _ in changes) else max(10.0, 1.25 * max(n for _, n, _ in changes))
    told = ", ".join(f"{new:g} percent from {duration(at)}" for at, new, _ in changes[:-1])
    plot = Plot(
        "weights", f"Share of users answered by version {version} over time: {told}.", _span(history), (0.0, top),
        lambda value: f"{value:g} %", WIDE, 190,
    )  # fmt: skip
    plot.area([(at, new) for at, new, _ in changes], "canary")
    plot.line([(at, control) for at, _, control in changes], "control", step=True)
    plot.line([(at, new) for at, new, _ in changes], "canary", step=True)
    before = 0.0
    for at, new, _ in changes[:-1]:
        if new != before and plot.width - plot.px(at) > 50:
            plot.note((at, new), f"{new:g} %")
        before = new
    text = f"version {version}; dashed: its control, the same share on the release it is compared with"
    return _figure("Weights", plot, text)


def failures(history: History, *, zoom: bool = False) -> str:
    """Failed answers of the arms per second, in bins; `zoom`: only the last minute before the canary was gone."""
    low, high = _span(history)
    if zoom:
        centre = (history.summary.ended_s or history.end_s) - history.start_s
        low, high = max(low, centre - ZOOM_S), min(high, centre + ZOOM_S / 6)
    width = _round_width((high - low) / BINS)
    counts = {arm: _binned(history.blocks[arm], history.start_s, width, (low, high)) for arm in ARMS}
    top = max([*counts["canary"].values(), *counts["control"].values(), 1]) / width
    first, last = history.first_failure_s, history.last_canary_s
    name = "failures-zoom" if zoom else "failures"
    plot = Plot(name, _failures_told(history), (low, high), (0.0, 1.15 * top), lambda v: f"{v:g} /s", WIDE, 190)
    if first is not None and last is not None and history.time_to_zero_s is not None:
        plot.span((first - history.start_s, last - history.start_s), "zero")
    for arm in ARMS:
        for number, count in sorted(counts[arm].items()):
            plot.bar((number * width, (number + 0.9) * width), (0.0, count / width), arm)
    if first is not None and low <= first - history.start_s <= high:
        plot.mark(first - history.start_s, f"first bad answer, +{duration(first - history.start_s)}", "bad")
    caption = f"bins of {width:g} s; shaded: from the first bad answer to the last canary request"
    return _figure("Failed answers, the last minute" if zoom else "Failed answers", plot, caption)


def guard(name: str, series: Sequence[tuple[float, GuardResult]], history: History) -> str:
    points = [(at - history.start_s, result) for at, result in series]
    last = points[-1][1]
    plot = Plot(
        f"guard-{re.sub(r'[^a-z0-9]+', '-', name.lower())}",
        f"{name} of canary and control over time, with confidence bands. At the end: {last.sentence}",
        _span(history), _range(name, [g for _, g in points]), lambda value: number(name, value),
    )  # fmt: skip
    for entry in history.entries:
        if entry.kind in ("step", "promoted", "rolled-back", "aborted"):
            plot.mark(entry.at_s - history.start_s, kind="event")
    for arm in ARMS:
        within = [(at, *limits(g, arm)) for at, g in points]
        plot.band([(at, low, high) for at, low, high in within if low is not None and high is not None], arm)
    for arm in ARMS:
        plot.line([(at, value) for at, g in points if (value := estimate(g, arm)) is not None], arm)
    return _figure(f"{name}: {last.state}", plot, last.sentence)


def estimate(result: GuardResult, arm: TrialArm) -> float | None:
    return result.canary if arm == "canary" else result.control


def limits(result: GuardResult, arm: TrialArm) -> tuple[float | None, float | None]:
    if arm == "canary":
        return result.canary_low, result.canary_high
    return result.control_low, result.control_high


def number(guard: str, value: float) -> str:
    """A value of a guard with its unit: milliseconds, a mean reward, or a share."""
    if guard in ("p50", "p95", "p99") or "ms" in guard.split("_"):
        return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
    if guard == "reward":
        return f"{value:.3g}"
    return f"{round(100 * value, 1 if value >= 0.1 else 2):g} %"


def _span(history: History) -> tuple[float, float]:
    return 0.0, history.end_s - history.start_s


def _range(name: str, results: Sequence[GuardResult]) -> tuple[float, float]:
    """So that every estimate and the last bands are seen whole: the first bands are wide, and may be cut."""
    seen = [value for g in results for arm in ARMS if (value := estimate(g, arm)) is not None]
    seen += [value for arm in ARMS for value in limits(results[-1], arm) if value is not None]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    if name != "reward":
        low = 0.0
    room = 0.08 * (high - low) or 0.05
    return (low if name != "reward" else low - room), high + room


def _binned(blocks: Sequence[Block], start_s: float, width: float, window: tuple[float, float]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for block in blocks:
        at = block.at_s - start_s
        failed = sum(outcome in FAILURES for outcome in block.outcomes)
        if failed and window[0] <= at <= window[1]:
            counts[int(at // width)] += failed
    return counts


def _round_width(width: float) -> float:
    """A bin of a round length, of half a second at least: blocks are a quarter of one apart."""
    return max(0.5, next(iter(ticks(0.0, 2 * width, 2)[1:]), width))


def _failures_told(history: History) -> str:
    canary, control = history.tally("canary"), history.tally("control")
    return (
        f"Failed answers per second. In all {canary.failed:,} of {canary.requests:,} canary requests and "
        f"{control.failed:,} of {control.requests:,} control requests failed."
    )


def _figure(title: str, plot: Plot, caption: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{plot.svg()}<figcaption>{escape(caption)}</figcaption></figure>"
