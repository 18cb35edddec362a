"""What happened in a rollout, in numbers: counted and judged anew from the stored evidence. Pure.

Called by `registry.report.page`; calls `registry.explain` for the part of the journal. Nothing is taken from the memory
of the controller, so a report made years later is the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from registry.analysis.verdict import GuardResult, Verdict
from registry.explain import ENDED, Outcome, Summary, percent_of, summarize, verdict_of
from registry.ports import EvidenceStore
from registry.traffic import FAILURES, Block, Entry, Evidence, EvidenceArm, TrialArm

POINTS = 60
PAGE = 2000
MOST_BLOCKS = 200_000
"""About seven hours of both arms at four blocks a second and router; a report of more tells its beginning."""

ARMS: tuple[TrialArm, ...] = ("canary", "control")
TAKEN_AWAY: frozenset[Outcome] = frozenset({"rolled back", "aborted", "superseded"})


class Judge(Protocol):
    """`registry.analysis.Analysis`."""

    def add(self, arm: TrialArm, latencies_ms: Sequence[float], outcomes: str) -> None: ...

    def add_measures(self, arm: TrialArm, measures: Mapping[str, Sequence[float | None]]) -> None: ...

    def verdict(self) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests of one arm, by outcome letter."""

    outcomes: Mapping[str, int]

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome in FAILURES)


@dataclass(frozen=True, slots=True)
class Point:
    """What the evidence up to `at_s` said."""

    at_s: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class History:
    """One rollout. `blocks` are in order of time per arm; times are Unix seconds. A block holds what ended within about
    a quarter of a second, so the times of single requests are as fine as that."""

    entries: Sequence[Entry]
    summary: Summary
    blocks: Mapping[EvidenceArm, Sequence[Block]]
    points: Sequence[Point]
    start_s: float
    end_s: float

    def tally(self, arm: EvidenceArm) -> Tally:
        counts: Counter[str] = Counter()
        for block in self.blocks[arm]:
            counts.update(block.outcomes)
        return Tally(counts)

    @property
    def last_verdict(self) -> Verdict | None:
        """The one that was acted upon; else what all the evidence says."""
        written = [v for e in self.entries if (v := verdict_of(e)) is not None]
        if written:
            return written[-1]
        return self.points[-1].verdict if self.points else None

    @property
    def first_failure_s(self) -> float | None:
        """When the canary first failed to answer."""
        return next((b.at_s for b in self.blocks["canary"] if FAILURES & set(b.outcomes)), None)

    @property
    def last_canary_s(self) -> float | None:
        blocks = self.blocks["canary"]
        return blocks[-1].at_s if blocks else None

    @property
    def time_to_zero_s(self) -> float | None:
        """From the first failing canary answer to the last canary request of all; None unless it was taken away."""
        first, last = self.first_failure_s, self.last_canary_s
        if first is None or last is None or self.summary.outcome not in TAKEN_AWAY:
            return None
        return last - first

    @property
    def decision_to_zero_s(self) -> float | None:
        """From the decision to take it away to the last canary request of all; 0 where that came before."""
        ended, last = self.summary.ended_s, self.last_canary_s
        if ended is None or last is None or self.summary.outcome not in TAKEN_AWAY:
            return None
        return max(0.0, last - ended)

    @property
    def agreement(self) -> float | None:
        """Share of mirrored answers whose first result was the one given; None without shadow traffic."""
        marks = "".join(block.agreed for block in self.blocks["shadow"])
        return marks.count("1") / len(marks) if marks else None

    def guards(self) -> dict[str, list[tuple[float, GuardResult]]]:
        """Each guard's numbers over time. One that the evidence alone does not tell (reward, which needs the feedback)
        has those that the journal holds."""
        told: dict[str, list[tuple[float, GuardResult]]] = {}
        written = [Point(e.at_s, v) for e in self.entries if (v := verdict_of(e)) is not None]
        for name in {g.name: None for p in (*self.points, *written) for g in p.verdict.guards}:
            for points in (self.points, written):
                series = [(p.at_s, g) for p in points for g in p.verdict.guards if g.name == name]
                if any(g.canary is not None for _, g in series):
                    told[name] = series
                    break
        return told


def read_evidence(store: EvidenceStore, app: str, rollout: int, page: int = PAGE) -> list[Evidence]:
    """All that the routers wrote of a rollout, at most MOST_BLOCKS. Raises RegistryUnavailable."""
    found: list[Evidence] = []
    cursor: dict[str, int] = {}
    while len(found) < MOST_BLOCKS:
        more = store.after(app, rollout, cursor, page)
        if not more:
            break
        found += more
        for evidence in more:
            cursor[evidence.router] = max(cursor.get(evidence.router, 0), evidence.seq)
    return found


def make_history(entries: Sequence[Entry], evidence: Sequence[Evidence], judge: Callable[[], Judge]) -> History:
    """`judge` makes an analysis that has seen nothing. `entries` are those of one rollout, at least one."""
    ordered = sorted(evidence, key=lambda e: e.block.at_s)
    summary = summarize(entries)
    times = [entry.at_s for entry in entries] + [e.block.at_s for e in ordered]
    start, end = min(times), max(times)
    if summary.ended_s is not None:
        end = max(summary.ended_s, ordered[-1].block.at_s if ordered else 0.0)
    blocks: dict[EvidenceArm, list[Block]] = {"canary": [], "control": [], "shadow": []}
    for one in ordered:
        blocks[one.arm].append(one.block)
    return History(entries, summary, blocks, _judge(ordered, entries, judge), start, max(end, start + 1.0))


def _judge(ordered: Sequence[Evidence], entries: Sequence[Entry], judge: Callable[[], Judge]) -> list[Point]:
    """About POINTS verdicts, evenly over the time there is evidence of, and one at each decision.

    After promotion the judgement starts anew, as the controller's does: the bake is a trial of its own.
    """
    trial = [one for one in ordered if one.arm != "shadow"]
    if not trial:
        return []
    begin, end = trial[0].block.at_s, trial[-1].block.at_s
    at = {begin + (end - begin) * n / POINTS for n in range(1, POINTS + 1)}
    at |= {entry.at_s for entry in entries if begin < entry.at_s < end}
    anew = {entry.at_s for entry in entries if entry.kind == "promoted"}
    points: list[Point] = []
    analysis, done = judge(), 0
    stamps = [one.block.at_s for one in trial]
    for moment in sorted(at):
        upto = bisect_right(stamps, moment)
        for arm in ARMS:  # in one go: it costs a fraction of block by block, and judges the same
            blocks = [one.block for one in trial[done:upto] if one.arm == arm]
            if blocks:
                latencies = list(chain.from_iterable(block.latencies_ms for block in blocks))
                analysis.add(arm, latencies, "".join(block.outcomes for block in blocks))
                for block in blocks:
                    if block.measures:
                        analysis.add_measures(arm, block.measures)
        if upto > done:
            points.append(Point(moment, analysis.verdict()))
        if moment in anew:
            analysis = judge()
        done = upto
    return points


def shares(history: History) -> list[tuple[float, float, float]]:
    """(when, new version's percent, control's percent) at each change, from the start to the end."""
    changes = [(history.start_s, 0.0, 0.0)]
    for entry in history.entries:
        percent = percent_of(entry)
        if entry.kind == "step" and percent is not None:
            changes.append((entry.at_s, percent, percent))
        elif entry.kind in ("promoted", "switched", "baked"):
            changes.append((entry.at_s, 100.0, 0.0))
        elif entry.kind in ("rolled-back", "aborted", "superseded", "refused"):
            changes.append((entry.at_s, 0.0, 0.0))
    return [*changes, (history.end_s, *changes[-1][1:])]


def is_over(history: History) -> bool:
    return history.summary.outcome in ENDED
