"""What one model did on one set of cases, in the form in which two models are compared.

`training.gates` compares; `training.measure` makes `Ranked` of a release's answers, trainers' rankers give `Scored`,
language models `TokenScores`. Rows are numbers of cases; a slice is the rows of its cases, and slices may overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training import metrics
from training.evaluate import Report
from training.metrics import Values

Rows = NDArray[np.int64]
Weights = NDArray[np.float64] | NDArray[np.int64]


class Evidence(Protocol):
    """Two pieces of evidence can be compared where `key`, a digest of the cases, is equal."""

    @property
    def key(self) -> str: ...

    @property
    def cases(self) -> int: ...

    @property
    def members(self) -> Mapping[str, Rows]:
        """Slice -> the rows of its cases."""

    @property
    def metrics(self) -> frozenset[str]:
        """Those that a gate may ask for."""

    def per_case(self, metric: str) -> Values | None:
        """(cases,), where the figure is their mean; None where it is something else."""

    def figure(self, metric: str, rows: Rows, weights: Weights) -> Values:
        """The figure of `rows` (r,), counted as often as `weights` (b, r) say: (b,); NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Answers to a set of cases: each metric of ranking is a mean over them."""

    report: Report

    @property
    def key(self) -> str:
        return self.report.key

    @property
    def cases(self) -> int:
        return self.report.overall.count

    @property
    def members(self) -> Mapping[str, Rows]:
        return self.report.members

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset(self.report.values)

    def per_case(self, metric: str) -> Values | None:
        return self.report.values[metric]

    def figure(self, metric: str, rows: Rows, weights: Weights) -> Values:
        return _weighted_mean(self.report.values[metric][rows], weights)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Labelled cases with the probability a model gave each: `labels` 0 or 1, `probabilities` 0..1, `weights` (default:
    1 each), all (n,)."""

    labels: Values
    probabilities: Values
    weights: Values | None = None
    members: Mapping[str, Rows] = field(default_factory=dict)
    key: str = ""

    @property
    def cases(self) -> int:
        return len(self.labels)

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset({"auc", "log_loss", "calibration_error"})

    def per_case(self, metric: str) -> Values | None:
        return metrics.log_loss(self.labels, self.probabilities) if metric == "log_loss" and self._equal() else None

    def figure(self, metric: str, rows: Rows, weights: Weights) -> Values:
        own = np.ones(len(rows)) if self.weights is None else self.weights[rows]
        labels, probabilities, counted = self.labels[rows], self.probabilities[rows], weights * own
        if metric == "auc":
            return metrics.auc(labels, probabilities, counted)
        if metric == "calibration_error":
            return metrics.calibration_error(labels, probabilities, counted)
        return _weighted_mean(metrics.log_loss(labels, probabilities), counted)

    def _equal(self) -> bool:
        return self.weights is None or bool((self.weights == self.weights[:1]).all())


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Texts that a language model read: the sum of the natural log-likelihoods of its `tokens`, for each, both (n,).
    Perplexity, a ratio of sums, is all there is."""

    log_likelihoods: Values
    tokens: Values
    members: Mapping[str, Rows] = field(default_factory=dict)
    key: str = ""

    @property
    def cases(self) -> int:
        return len(self.tokens)

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset({"perplexity"})

    def per_case(self, metric: str) -> Values | None:  # noqa: ARG002
        return None

    def figure(self, metric: str, rows: Rows, weights: Weights) -> Values:  # noqa: ARG002
        return metrics.perplexity(self.log_likelihoods[rows], self.tokens[rows], weights)


@dataclass(frozen=True, eq=False)
class ScoredByUser:
    """As `Scored`, judged within each user: AUC is the mean over users of their own, each counted by the weight of
    their cases, because a ranker only ever orders the candidates of one user (the GAUC of Zhou et al. 2018, "Deep
    Interest Network for Click-Through Rate Prediction", arXiv 1706.06978). A case here is a user who chose something
    and turned another down. `scored` holds everybody's rows, user by user, `starts` (users + 1,) where each begins."""

    scored: Scored
    starts: NDArray[np.int64]
    members: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.scored.key

    @property
    def cases(self) -> int:
        return len(self.starts) - 1

    @property
    def metrics(self) -> frozenset[str]:
        return self.scored.metrics

    def per_case(self, metric: str) -> Values | None:  # noqa: ARG002 - users weigh differently
        return None

    def figure(self, metric: str, rows: Rows, weights: Weights) -> Values:
        """Users are drawn whole: what one of them did hangs together."""
        counts = np.diff(self.starts)[rows]
        if metric == "auc":
            mass = np.add.reduceat(self._weights, self.starts[:-1])[rows] if self.cases else np.empty(0)
            return _weighted_mean(self._aucs[rows], weights * mass)
        spans = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows.tolist()]
        cases = np.concatenate(spans) if spans else np.empty(0, np.int64)
        return self.scored.figure(metric, cases, np.asarray(np.repeat(weights, counts, axis=-1), np.float64))

    @cached_property
    def _weights(self) -> Values:
        return np.ones(self.scored.cases) if self.scored.weights is None else self.scored.weights

    @cached_property
    def _aucs(self) -> Values:
        s = self.scored
        spans = [self._span(row) for row in range(self.cases)]
        return np.array([metrics.auc(s.labels[p], s.probabilities[p], self._weights[p]) for p in spans], np.float64)

    def _span(self, row: int) -> slice:
        return slice(int(self.starts[row]), int(self.starts[row + 1]))


def by_user(users: Sequence[str], scored: Scored) -> ScoredByUser:
    """`users` (n,) of the rows of `scored`. Users with one label only, of whom no order can be judged, and nobody's
    rows are left out."""
    rows_of: dict[str, list[int]] = {}
    for row, user in enumerate(users):
        if user:
            rows_of.setdefault(user, []).append(row)
    kept = [rows for _, rows in sorted(rows_of.items()) if 0 < scored.labels[rows].sum() < len(rows)]
    order = np.array([row for rows in kept for row in rows], np.int64)
    weights = None if scored.weights is None else scored.weights[order]
    ordered = Scored(scored.labels[order], scored.probabilities[order], weights, key=scored.key)
    return ScoredByUser(ordered, np.cumsum([0, *map(len, kept)]))


def _weighted_mean(values: Values, weights: Weights) -> Values:
    total = weights.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (weights @ values) / total, np.nan)


@dataclass(frozen=True, slots=True)
class Compared:
    """A candidate and stable on the same cases. `stable` is None for an app's first release."""

    candidate: Evidence
    stable: Evidence | None

    def __post_init__(self) -> None:
        """Raises ValueError when the two did not see the same cases."""
        if self.stable is not None and (self.candidate.key, self.candidate.cases) != (
            self.stable.key,
            self.stable.cases,
        ):
            raise ValueError("candidate and stable were not measured on the same cases: measure both again")


def compare(candidate: Mapping[str, Report], stable: Mapping[str, Report] | None) -> dict[str, Compared]:
    """Evaluation set -> the comparison, of the reports of two releases; `stable` None: there is no release yet."""
    return {
        name: Compared(Ranked(report), None if stable is None else Ranked(stable[name]))
        for name, report in candidate.items()
    }
