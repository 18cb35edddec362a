"""How well anything that searches answers a frozen set of cases: overall, and per slice.

Called by `training.measure` for the `evaluate` command and the gates before publishing, and by the benches. What is
evaluated is a function, `Ask`, so the same figures can be taken of rules alone, dense alone, a pipeline or an HTTP
endpoint. Calls `training.metrics`. Pure.

An answer that abstains offers no item, whatever ids come with it. A case that accepts no id is right only if the
searcher abstains (or offers nothing), and then counts as found at rank 1: as if abstaining were an item of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import metrics
from training.cases import Case
from training.errors import SearcherBroken

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
RECALL_AT = (1, 5, 10, 20, 50, 100)
NOTHING = ""
"""The item that an abstention offers, and that a case without a right item accepts."""


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """What a searcher says to one query: ids, best first, and whether it declines to choose among them."""

    ids: tuple[str, ...]
    abstained: bool = False

    @property
    def offered(self) -> tuple[str, ...]:
        return () if self.abstained else self.ids


Ask = Callable[[Sequence[str]], list[RankedAnswer]]
"""A batch of queries to their answers, in the same order."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Shares, 0..1, of `count` cases, as `training.metrics` defines them. `recall_at`: depth -> recall, for the depths
    of `RECALL_AT` up to k. Intervals are Wilson's at 95 % (Wilson 1927, JASA 22). The abstention figures are None where
    nothing abstained (precision) or nothing should have (recall)."""

    count: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    success_at_k: float
    success_at_k_interval: tuple[float, float]
    mrr_at_k: float
    abstained: int
    abstention_precision: float | None
    abstention_recall: float | None
    recall_at_k: float = 0.0
    precision_at_k: float = 0.0
    map_at_k: float = 0.0
    ndcg_at_k: float = 0.0
    recall_at: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that was not right at rank 1, for a person to look at."""

    query: str
    slice: str
    accept: tuple[str, ...]
    answered: tuple[str, ...]
    abstained: bool


@dataclass(frozen=True, slots=True)
class Report:
    """`values`: metric of a gate -> its value for each case, (n,), whose mean is the figure. `members`: slice -> the
    rows of its cases. `key` is a digest of cases and k: two reports can be compared case by case where it is equal."""

    k: int
    overall: Metrics
    slices: Mapping[str, Metrics]
    failures: tuple[Failure, ...] = field(default=())
    values: Mapping[str, metrics.Values] = field(default_factory=dict, repr=False, compare=False)
    members: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the values of single cases; slices in the order in which the cases first named
        them."""
        return {
            "k": self.k,
            "overall": asdict(self.overall),
            "slices": {name: asdict(m) for name, m in self.slices.items()},
            "failures": [asdict(failure) for failure in self.failures],
        }


def rank_of_right(case: Case, answer: RankedAnswer) -> int | None:
    """Rank, from 1, of the first right id that is offered; 1 for a right abstention; None where nothing is right."""
    offered = answer.offered
    if not case.accept:
        return None if offered else 1
    return next((rank for rank, item_id in enumerate(offered, 1) if item_id in case.accept), None)


def wilson_interval(successes: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Bounds of a share of which `successes` in `count` were seen; (0, 1) where nothing was."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def case_values(cases: Sequence[Case], answers: Sequence[RankedAnswer], k: int) -> dict[str, metrics.Values]:
    """Metric of a gate -> (n,), one value per case; also "recall_at_N" for the depths of `RECALL_AT` up to k."""
    right = [case.accept or {NOTHING} for case in cases]
    gains = metrics.gains_of([answer.offered or (NOTHING,) for answer in answers], right, k)
    count = np.array([len(accepted) for accepted in right], np.int64)
    values = {
        "accuracy": metrics.success_at_k(gains, 1),
        "success_at_k": metrics.success_at_k(gains, k),
        "recall_at_k": metrics.recall_at_k(gains, count, k),
        "precision_at_k": metrics.precision_at_k(gains, k),
        "mrr": metrics.reciprocal_rank(gains, k),
        "map": metrics.average_precision(gains, count, k),
        "ndcg_at_k": metrics.ndcg_at_k(gains, metrics.ideal_of(right, k), k),
    }
    return values | {f"recall_at_{n}": metrics.recall_at_k(gains, count, n) for n in RECALL_AT if n <= k}


def measure(cases: Sequence[Case], answers: Sequence[RankedAnswer], k: int) -> Metrics:
    """The figures of these cases; every share is 0 where there are none."""
    return _metrics(cases, answers, case_values(cases, answers, k))


def _metrics(cases: Sequence[Case], answers: Sequence[RankedAnswer], values: Mapping[str, metrics.Values]) -> Metrics:
    count = len(cases)
    silent = [not answer.offered for answer in answers]
    rightly = sum(was and not case.accept for case, was in zip(cases, silent, strict=True))
    wanted = sum(not case.accept for case in cases)
    mean = {name: float(v.mean()) if count else 0.0 for name, v in values.items()}
    return Metrics(
        count=count,
        accuracy=mean["accuracy"],
        accuracy_interval=wilson_interval(int(values["accuracy"].sum()), count),
        success_at_k=mean["success_at_k"],
        success_at_k_interval=wilson_interval(int(values["success_at_k"].sum()), count),
        mrr_at_k=mean["mrr"],
        abstained=sum(silent),
        abstention_precision=rightly / sum(silent) if any(silent) else None,
        abstention_recall=rightly / wanted if wanted else None,
        recall_at_k=mean["recall_at_k"],
        precision_at_k=mean["precision_at_k"],
        map_at_k=mean["map"],
        ndcg_at_k=mean["ndcg_at_k"],
        recall_at={n: mean[name] for n in RECALL_AT if (name := f"recall_at_{n}") in mean},
    )


def evaluate(
    ask: Ask,
    cases: Sequence[Case],
    k: int = 10,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Ask every case, `batch` queries at a time. `progress` gets (done, all) after each batch. Raises SearcherBroken
    if `ask` returns another number of answers than it got queries; what `ask` raises goes through."""
    return evaluate_cases(lambda some: ask([case.query for case in some]), cases, k, batch, progress)


def evaluate_cases(
    answer: Callable[[Sequence[Case]], list[RankedAnswer]],
    cases: Sequence[Case],
    k: int = 10,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """As `evaluate`, for a searcher that reads more of a case than its text."""
    if k < 1 or batch < 1:
        raise ValueError(f"k and batch are at least 1, not {k} and {batch}")
    answers: list[RankedAnswer] = []
    for start in range(0, len(cases), batch):
        some = cases[start : start + batch]
        got = answer(some)
        if len(got) != len(some):
            raise SearcherBroken(f"asked {len(some)} queries, got {len(got)} answers: one is due for each query")
        answers.extend(got)
        if progress:
            progress(len(answers), len(cases))
    return report_of(cases, answers, k)


def report_of(cases: Sequence[Case], answers: Sequence[RankedAnswer], k: int) -> Report:
    """The report of cases that were asked, one answer each."""
    by_slice: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        for name in dict.fromkeys((case.slice, *case.also)):
            by_slice.setdefault(name, []).append(index)
    values = case_values(cases, answers, k)

    def figures(rows: Sequence[int]) -> Metrics:
        return _metrics([cases[i] for i in rows], [answers[i] for i in rows], {n: v[rows] for n, v in values.items()})

    return Report(
        k=k,
        overall=_metrics(cases, answers, values),
        slices={name: figures(rows) for name, rows in by_slice.items()},
        failures=tuple(
            Failure(case.query, case.slice, tuple(sorted(case.accept)), answer.ids[:3], answer.abstained)
            for case, answer in zip(cases, answers, strict=True)
            if rank_of_right(case, answer) != 1
        ),
        values=values,
        members={name: np.array(rows, np.int64) for name, rows in by_slice.items()},
        key=_key(cases, k),
    )


def _key(cases: Sequence[Case], k: int) -> str:
    parts = [[c.query, sorted(c.accept), c.slice, c.also, c.quantity, c.vintage, dict(c.record), c.like] for c in cases]
    return hashlib.sha256(json.dumps([k, parts], sort_keys=True, default=str).encode()).hexdigest()


def metrics_of(name: str, report: Report) -> dict[str, float]:
    """The figures of evaluation set `name` as a release and its MLflow run record them."""
    m, k = report.overall, report.k
    return {
        f"{name}_accuracy": m.accuracy,
        f"{name}_success_at_{k}": m.success_at_k,
        f"{name}_mrr_at_{k}": m.mrr_at_k,
        f"{name}_map_at_{k}": m.map_at_k,
        f"{name}_ndcg_at_{k}": m.ndcg_at_k,
        f"{name}_precision_at_{k}": m.precision_at_k,
        **{f"{name}_recall_at_{n}": share for n, share in {**m.recall_at, k: m.recall_at_k}.items()},
    }


def render_recalls(reports: Mapping[str, Report], title: str) -> str:
    """Several searchers on the same cases as a table: Recall at each depth, in percent, and MRR."""
    depths = sorted({n for report in reports.values() for n in report.overall.recall_at})
    rows = [("", *(f"R@{n}" for n in depths), "MRR")]
    for name, report in reports.items():
        recalls = (_percent(report.overall.recall_at.get(n)) for n in depths)
        rows.append((name, *recalls, f"{report.overall.mrr_at_k:.3f}"))
    lines = _aligned(rows)
    rule = "-" * len(lines[0])
    return "\n".join([title, rule, lines[0], rule, *lines[1:]])


def render(report: Report, title: str) -> str:
    """The report as a table of text, a line per slice; shares in percent."""
    header = (
        "slice",
        "cases",
        "top-1",
        "95 % interval",
        f"top-{report.k}",
        f"R@{report.k}",
        f"MRR@{report.k}",
        "MAP",
        "NDCG",
        "abstain P",
        "abstain R",
    )
    rows = [header, *(_row(name, m) for name, m in report.slices.items()), _row("all", report.overall)]
    lines = _aligned(rows)
    rule = "-" * len(lines[0])
    return "\n".join([title, rule, lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _row(name: str, m: Metrics) -> tuple[str, ...]:
    low, high = m.accuracy_interval
    return (
        name,
        str(m.count),
        _percent(m.accuracy),
        f"{_percent(low)} - {_percent(high)}",
        _percent(m.success_at_k),
        _percent(m.recall_at_k),
        f"{m.mrr_at_k:.3f}",
        f"{m.map_at_k:.3f}",
        f"{m.ndcg_at_k:.3f}",
        _percent(m.abstention_precision),
        _percent(m.abstention_recall),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
