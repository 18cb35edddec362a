"""One example per query and item: what people said about the same pair, brought to one label. Pure.

The rule: what somebody did outweighs what was only shown. Each person has one voice, their latest; what came without a
name is a voice each time. The voices' weights are added up per label, the larger sum decides, of equal ones the latest
voice. The strongest voice of that label is kept, of equally strong ones the latest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from training.dataset.example import Example
from training.dataset.join import SHOWN
from training.dataset.keys import canonical


class Resolved(NamedTuple):
    kept: Example
    dropped: int
    contradicted: bool


def resolve(rows: Sequence[Example]) -> Resolved:
    """`rows`, at least one, are about the same pair; their order does not matter."""
    if len(rows) == 1:
        return Resolved(rows[0], 0, False)
    said = [row for row in rows if row.event != SHOWN]
    if not said:
        return Resolved(max(rows, key=_age), len(rows) - 1, False)
    voices = _voices(said)
    weights = [sum(v.weight for v in sorted(voices, key=_age) if v.label == label) for label in (0, 1)]
    undecided = weights[0] == weights[1]
    label = max(voices, key=_age).label if undecided else int(weights[1] > weights[0])
    kept = max((v for v in voices if v.label == label), key=lambda v: (v.weight, _age(v)))
    return Resolved(kept, len(rows) - 1, len({row.label for row in said}) > 1)


def _voices(said: Iterable[Example]) -> list[Example]:
    latest: dict[str, Example] = {}
    voices: list[Example] = []
    for row in said:
        if not row.user:
            voices.append(row)
        elif row.user not in latest or _age(row) > _age(latest[row.user]):
            latest[row.user] = row
    return voices + list(latest.values())


def _age(row: Example) -> tuple[float, float, bytes]:
    """Later is larger; of one moment the heavier, then any order that is the same in every run."""
    rest = [row.label, row.event, row.query, row.rank, row.score, row.user, row.slice]
    return row.at_s, row.weight, canonical(rest)
