"""Whether a candidate may go on trial: each gate of app.yaml, judged on the same frozen cases as stable.

`training.run` calls `judge` before it sets an alias, `palate evaluate --against` shows the same rows for two releases.
Pure: a comparison, a seed and the gates decide alone.

The burden of proof differs. A set as a whole needs proof in the candidate's favour: its interval has to lie above
`margin` (better) or not below `-margin` (no_worse). A slice needs proof against it: it fails only when its whole
interval lies below `-slice_margin`, since otherwise noise in one of twenty slices would stop every candidate. So that
one slice in many does not fail by chance, their intervals are widened together (Bonferroni: each at 1 - (1 - level) /
slices). A slice of three cases can lose all of them and still pass, because two imagined cases join it
(`training.bootstrap`); one that loses five or six of six does not.

Differences are positive where the candidate is better. That of perplexity is ln(stable / candidate): 0.02 is 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.schema import GateSpec
from training.bootstrap import Interval, figure_interval, generator, mean_interval
from training.errors import TrainingRefused
from training.evidence import Compared, Evidence, Rows
from training.metrics import Counts, Values

LESS_IS_BETTER = frozenset({"log_loss", "calibration_error", "perplexity"})
MIN_RESAMPLED = 20
"""Slices with fewer cases are shown but not judged where the metric is no mean over cases: nothing widens theirs."""


@dataclass(frozen=True, slots=True)
class Row:
    """Candidate against stable on some cases. `difference` and `interval` are positive where the candidate is better;
    None where there is nothing to compare with, or too little for an interval."""

    name: str
    cases: int
    candidate: float | None
    stable: float | None
    difference: float | None
    interval: tuple[float, float] | None
    passed: bool = True


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate. `sentence` says to a person what was found and why that passes or not."""

    name: str
    gate: GateSpec
    overall: Row
    slices: tuple[Row, ...]
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class GateReport:
    """`passed`: every gate did. `note`: what a person should know of the whole, "" if nothing."""

    passed: bool
    gates: tuple[GateResult, ...]
    note: str = ""

    @property
    def reason(self) -> str:
        """The sentences of the gates that failed, or the note: what a version's tag says."""
        return " ".join(gate.sentence for gate in self.gates if not gate.passed) or self.note

    def to_json(self) -> dict[str, Any]:
        gates = [{**asdict(g), "gate": g.gate.model_dump(mode="json")} for g in self.gates]
        return {"passed": self.passed, "note": self.note, "gates": gates}

    def metrics(self) -> dict[str, float]:
        """Of each gate the difference and its bounds, by names MLflow takes."""
        found = {}
        for gate in self.gates:
            row, name = gate.overall, f"gate_{gate.name}_{gate.gate.metric}"
            if row.difference is not None:
                found[f"{name}_difference"] = row.difference
            if row.interval is not None:
                found |= {f"{name}_low": row.interval[0], f"{name}_high": row.interval[1]}
        return found


def judge(gates: Mapping[str, GateSpec], results: Mapping[str, Compared], seed: int) -> GateReport:
    """`gates` and `results` by set. Raises TrainingRefused for a gate that asks of its set what that cannot tell."""
    judged = tuple(_judge_gate(name, gate, results.get(name), seed) for name, gate in gates.items())
    note = ""
    if not gates:
        note = "No gate is set in app.yaml: nothing was judged."
    elif results and all(compared.stable is None for compared in results.values()):
        note = "First release: there is no stable one to compare with."
    return GateReport(all(gate.passed for gate in judged), judged, note)


def contrast(name: str, compared: Compared, metric: str, level: float = 0.95, seed: int = 0) -> list[Row]:
    """The set's own row, then one per slice, judged by no gate: what two releases differ in."""
    _check(name, metric, compared)
    everything = np.arange(compared.candidate.cases)
    members = {"all": everything, **_slices(compared.candidate)}
    return [_row(compared, metric, rows, level, generator(seed, name, s), s) for s, rows in members.items()]


def _judge_gate(name: str, gate: GateSpec, compared: Compared | None, seed: int) -> GateResult:
    if compared is None:
        nothing = Row("all", 0, None, None, None, None, passed=False)
        return GateResult(name, gate, nothing, (), False, f"{name}: was not measured, so nothing is shown.")
    _check(name, gate.metric, compared)
    rows = np.arange(compared.candidate.cases)
    overall = _row(compared, gate.metric, rows, gate.level, generator(seed, name), "all")
    overall = _with(overall, compared.stable is None or _holds(gate, overall.interval))
    slices = _judge_slices(name, gate, compared, seed)
    passed = overall.passed and all(row.passed for row in slices)
    return GateResult(name, gate, overall, slices, passed, _sentence(name, gate, overall, slices))


def _judge_slices(name: str, gate: GateSpec, compared: Compared, seed: int) -> tuple[Row, ...]:
    members = _slices(compared.candidate)
    level = 1 - (1 - gate.level) / max(len(members), 1)
    found = []
    for slice_name, rows in members.items():
        row = _row(compared, gate.metric, rows, level, generator(seed, name, slice_name), slice_name)
        few = len(rows) < MIN_RESAMPLED and compared.candidate.per_case(gate.metric) is None
        judged = gate.slice_margin is not None and row.interval is not None and not few
        lost = judged and row.interval is not None and row.interval[1] < -(gate.slice_margin or 0.0)
        found.append(_with(row, not lost))
    return tuple(found)


def _slices(evidence: Evidence) -> dict[str, Rows]:
    """Those that are not just everything."""
    return {name: rows for name, rows in evidence.members.items() if len(rows) < evidence.cases}


def _check(name: str, metric: str, compared: Compared) -> None:
    if metric not in compared.candidate.metrics:
        raise TrainingRefused(
            f"the gate of {name!r} asks for {metric!r}, which this set does not give; it gives "
            f"{sorted(compared.candidate.metrics)}: correct `gates.{name}.metric`"
        )


def _row(compared: Compared, metric: str, rows: Rows, level: float, rng: np.random.Generator, name: str) -> Row:
    candidate = _figure(compared.candidate, metric, rows)
    if compared.stable is None:
        return Row(name, len(rows), candidate, None, None, None)
    stable = _figure(compared.stable, metric, rows)
    if candidate is None or stable is None:
        return Row(name, len(rows), candidate, stable, None, None)
    interval = _interval(compared.candidate, compared.stable, metric, rows, (level, rng))
    difference = float(_gain(metric, np.array([candidate]), np.array([stable]))[0])
    return Row(name, len(rows), candidate, stable, difference, interval)


def _interval(
    candidate: Evidence, stable: Evidence, metric: str, rows: Rows, how: tuple[float, np.random.Generator]
) -> Interval | None:
    level, rng = how
    mine, its = candidate.per_case(metric), stable.per_case(metric)
    if mine is not None and its is not None:
        return mean_interval(_gain(metric, mine[rows], its[rows]), level, rng)

    def difference(counts: Counts) -> Values:
        return _gain(metric, candidate.figure(metric, rows, counts), stable.figure(metric, rows, counts))

    return figure_interval(difference, len(rows), level, rng)


def _figure(evidence: Evidence, metric: str, rows: Rows) -> float | None:
    figure = float(evidence.figure(metric, rows, np.ones((1, len(rows))))[0])
    return figure if math.isfinite(figure) else None


def _gain(metric: str, candidate: Values, stable: Values) -> Values:
    if metric == "perplexity":
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.log(stable) - np.log(candidate), np.float64)
    return stable - candidate if metric in LESS_IS_BETTER else candidate - stable


def _holds(gate: GateSpec, interval: tuple[float, float] | None) -> bool:
    if interval is None:
        return False
    return interval[0] > gate.margin if gate.require == "better" else interval[0] >= -gate.margin


def _with(row: Row, passed: bool) -> Row:
    return Row(row.name, row.cases, row.candidate, row.stable, row.difference, row.interval, passed)


# ---- For people


def _sentence(name: str, gate: GateSpec, overall: Row, slices: tuple[Row, ...]) -> str:
    metric = gate.metric
    if overall.stable is None and overall.passed:
        return f"{name}: {metric} is {_value(metric, overall.candidate)}; there is no stable release to compare with."
    if overall.interval is None:
        return f"{name}: its {overall.cases} cases are too few to compare two releases by {metric}."
    told = (
        f"{name}: {metric} went from {_value(metric, overall.stable)} to {_value(metric, overall.candidate)}, a "
        f"difference of {_gap(metric, overall.difference)} ({gate.level:.0%} interval {_range(metric, overall)})"
    )
    need = f"above {_gap(metric, gate.margin)}" if gate.require == "better" else f"from {_gap(metric, -gate.margin)} up"
    told += f"; the interval has to lie {need}, and it {'does' if overall.passed else 'does not'}."
    for row in slices:
        if not row.passed:
            told += (
                f" The slice {row.name!r} ({row.cases} cases) may lose {_gap(metric, gate.slice_margin).lstrip('+')} "
                f"and lost more: {_gap(metric, row.difference)}, interval {_range(metric, row)}."
            )
    return told


def _value(metric: str, figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.4g}" if metric in ("perplexity", "log_loss") else f"{100 * figure:.1f} %"


def _gap(metric: str, difference: float | None) -> str:
    return "-" if difference is None else f"{_signed(metric, difference)}{_unit(metric)}"


def _range(metric: str, row: Row) -> str:
    if row.interval is None:
        return "-"
    return f"{_signed(metric, row.interval[0])} to {_signed(metric, row.interval[1])}{_unit(metric)}"


def _signed(metric: str, difference: float) -> str:
    shown = difference if metric == "log_loss" else 100 * difference
    return "0" if shown == 0 else f"{shown:+.4f}" if metric == "log_loss" else f"{shown:+.1f}"


def _unit(metric: str) -> str:
    return {"log_loss": "", "perplexity": " %"}.get(metric, " points")


def render(report: GateReport) -> str:
    """A table, a line per gate and slice, then a sentence per gate."""
    lines = [] if not report.note else [report.note]
    for gate in report.gates:
        lines += [render_rows([gate.overall, *gate.slices], gate.gate.metric, gate.name), gate.sentence, ""]
    return "\n".join([*lines, f"Gates: {'passed' if report.passed else 'FAILED'}."])


def render_rows(rows: Sequence[Row], metric: str, title: str, names: tuple[str, str] = ("stable", "candidate")) -> str:
    """One set's rows as a table of text; `names` are those of the two that are compared."""
    header = (f"{title}: {metric}", "cases", *names, "difference", "interval", "")
    table = [header] + [
        (
            row.name,
            str(row.cases),
            _value(metric, row.stable),
            _value(metric, row.candidate),
            _gap(metric, row.difference),
            _range(metric, row),
            "" if row.passed else "FAILED",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in table
    )
