"""How well anything that searches answers a frozen set of cases: overall, and per slice.

Called by the `evaluate` command, by the gate of an int8 embedder and by the gate before publishing. What is evaluated
is a function, `Ask`, so the same figures can be taken of rules alone, dense alone, a pipeline or an HTTP endpoint.
Calls nothing of the platform; only `load_cases` touches the outside.

An answer that abstains offers no item, whatever ids come with it. A case that accepts no id is right only if the
searcher abstains (or offers nothing), and then counts as found at rank 1.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.errors import CasesInvalid, SearcherBroken

SCRIPT_LIMIT_S = 600.0
Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question. `accept` holds every right id; none of them means that the searcher should abstain."""

    query: str
    accept: frozenset[str]
    slice: str = "all"
    quantity: int | None = None
    vintage: int | None = None


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
    """Shares, 0..1, of `count` cases. `mrr_at_k` is the mean of 1 / rank of the first right id, 0 beyond rank k
    (Voorhees 1999, TREC-8). Intervals are Wilson's at 95 % (Wilson 1927, JASA 22). The abstention figures are None
    where nothing abstained (precision) or nothing should have (recall)."""

    count: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    success_at_k: float
    success_at_k_interval: tuple[float, float]
    mrr_at_k: float
    abstained: int
    abstention_precision: float | None
    abstention_recall: float | None


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
    k: int
    overall: Metrics
    slices: Mapping[str, Metrics]
    failures: tuple[Failure, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; slices in the order in which the cases first named them."""
        return asdict(self)


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


def measure(cases: Sequence[Case], answers: Sequence[RankedAnswer], k: int) -> Metrics:
    """The figures of these cases; every share is 0 where there are none."""
    ranks = [rank_of_right(case, answer) for case, answer in zip(cases, answers, strict=True)]
    silent = [not answer.offered for answer in answers]
    count, first = len(ranks), sum(rank == 1 for rank in ranks)
    within = [rank for rank in ranks if rank is not None and rank <= k]
    rightly = sum(was and not case.accept for case, was in zip(cases, silent, strict=True))
    wanted = sum(not case.accept for case in cases)
    return Metrics(
        count=count,
        accuracy=first / max(count, 1),
        accuracy_interval=wilson_interval(first, count),
        success_at_k=len(within) / max(count, 1),
        success_at_k_interval=wilson_interval(len(within), count),
        mrr_at_k=sum(1 / rank for rank in within) / max(count, 1),
        abstained=sum(silent),
        abstention_precision=rightly / sum(silent) if any(silent) else None,
        abstention_recall=rightly / wanted if wanted else None,
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
    if k < 1 or batch < 1:
        raise ValueError(f"k and batch are at least 1, not {k} and {batch}")
    answers: list[RankedAnswer] = []
    for start in range(0, len(cases), batch):
        queries = [case.query for case in cases[start : start + batch]]
        got = ask(queries)
        if len(got) != len(queries):
            raise SearcherBroken(f"asked {len(queries)} queries, got {len(got)} answers: one is due for each query")
        answers.extend(got)
        if progress:
            progress(len(answers), len(cases))
    by_slice: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        by_slice.setdefault(case.slice, []).append(index)
    return Report(
        k=k,
        overall=measure(cases, answers, k),
        slices={
            name: measure([cases[i] for i in rows], [answers[i] for i in rows], k) for name, rows in by_slice.items()
        },
        failures=tuple(
            Failure(case.query, case.slice, tuple(sorted(case.accept)), answer.ids[:3], answer.abstained)
            for case, answer in zip(cases, answers, strict=True)
            if rank_of_right(case, answer) != 1
        ),
    )


def render(report: Report, title: str) -> str:
    """The report as a table of text, a line per slice; shares in percent."""
    header = (
        "slice",
        "cases",
        "top-1",
        "95 % interval",
        f"top-{report.k}",
        f"MRR@{report.k}",
        "abstain P",
        "abstain R",
    )
    rows = [header, *(_row(name, m) for name, m in report.slices.items()), _row("all", report.overall)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([title, rule, lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(name: str, m: Metrics) -> tuple[str, ...]:
    low, high = m.accuracy_interval
    return (
        name,
        str(m.count),
        _percent(m.accuracy),
        f"{_percent(low)} - {_percent(high)}",
        _percent(m.success_at_k),
        f"{m.mrr_at_k:.3f}",
        _percent(m.abstention_precision),
        _percent(m.abstention_recall),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


# ---- Reading cases


def load_cases(source: str, folder: Path, limit_s: float = SCRIPT_LIMIT_S) -> list[Case]:
    """The cases of `source`, as an app.yaml names it: a JSON-lines file, or a Python script with its arguments whose
    output is JSON lines, relative to `folder`. A script runs in its own folder for at most `limit_s` seconds.

    Raises CasesInvalid, naming file and line.
    """
    parts = shlex.split(source)
    if not parts:
        raise CasesInvalid("the evaluation source is empty: name a .jsonl file or a .py script")
    file = folder / parts[0]
    if not file.is_file():
        raise CasesInvalid(f"there is no evaluation source {file}")
    if file.suffix == ".py":
        return parse_cases(_run_script(file.resolve(), parts[1:], limit_s), source)
    if len(parts) > 1:
        raise CasesInvalid(f"{source!r}: only a .py script takes arguments")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CasesInvalid(f"{file} is not UTF-8 text: {error}") from None
    return parse_cases(text, str(file))


def _run_script(file: Path, arguments: Sequence[str], limit_s: float) -> str:
    command = [sys.executable, file.name, *arguments]
    try:
        done = subprocess.run(command, cwd=file.parent, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise CasesInvalid(f"{file} was still running after {limit_s:g} s and was stopped") from None
    if done.returncode != 0:
        raise CasesInvalid(
            f"{file} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:].strip()}"
        )
    try:
        return done.stdout.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CasesInvalid(f"{file} printed something that is not UTF-8 text: {error}") from None


def parse_cases(text: str, origin: str) -> list[Case]:
    """JSON lines to cases; blank lines are skipped, unknown keys ignored. `origin` names the text in errors."""
    cases = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            cases.append(_parse_case(line, f"{origin}, line {number}"))
    if not cases:
        raise CasesInvalid(f"{origin} holds no cases")
    return cases


def _parse_case(line: str, where: str) -> Case:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise CasesInvalid(f"{where}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CasesInvalid(f"{where}: a case is a JSON object, not {type(raw).__name__}")
    query, accept, slice_ = raw.get("query"), raw.get("accept"), raw.get("slice", "all")
    if not isinstance(query, str) or not query.strip():
        raise CasesInvalid(f"{where}: `query` has to be a text that is not empty")
    if not isinstance(accept, list) or not all(isinstance(i, str) for i in accept):
        raise CasesInvalid(f"{where}: `accept` has to be a list of ids; an empty list means: abstain")
    if not isinstance(slice_, str) or not slice_:
        raise CasesInvalid(f"{where}: `slice` has to be a text")
    return Case(query, frozenset(accept), slice_, _whole(raw, "quantity", where), _whole(raw, "vintage", where))


def _whole(raw: Mapping[str, Any], key: str, where: str) -> int | None:
    value = raw.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise CasesInvalid(f"{where}: `{key}` has to be a whole number or null, not {value!r}")
    return value
