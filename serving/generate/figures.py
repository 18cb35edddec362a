"""The check `figures`: the numbers and names of a JSON answer fit together. Pure; called through
`serving.generate.checks`.

    checks:
      figures:
        sums: [{at: [top.*.percent, base.*.percent], is: 100}]
        tables: [{at: [top.*, base.*], key: material, value: percent, least: 1, most: {rose: 25, amber: 30}}]
        distinct: [{at: [top.*.material, base.*.material]}]

A table says which keys there are (unless the entry has the mark `unless`), and how much of each at most. `mended`
brings the values of a table to the sum that is asked of them, in proportion and within the limits, so that an answer
whose only fault is its arithmetic is not asked for again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from pydantic import Field

from serving.generate.grounded import at_path
from serving.schema.spec import Spec

MOST_TOLD = 3
"""Reasons that are told at a time."""


class SumSpec(Spec):
    """The numbers at these paths make `is` together."""

    at: tuple[str, ...] = Field(min_length=1)
    total: float = Field(alias="is")


class TableSpec(Spec):
    """The objects at these paths have a `key` that is in the table, and a `value` from `least` to what it says."""

    at: tuple[str, ...] = Field(min_length=1)
    key: str
    value: str
    most: dict[str, float]
    least: float = 0.0
    unless: str = Field("", description="A true key of this name in the object frees it.")


class DistinctSpec(Spec):
    """No value stands twice at these paths."""

    at: tuple[str, ...] = Field(min_length=1)


class FiguresOptions(Spec):
    sums: tuple[SumSpec, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    distinct: tuple[DistinctSpec, ...] = ()


def figure_faults(data: Any, options: FiguresOptions) -> list[str]:
    """What does not fit, as short phrases; empty: all does."""
    return [
        *(fault for one in options.tables for fault in _outside(data, one)),
        *(fault for one in options.distinct for fault in _twice(data, one)),
        *(fault for one in options.sums for fault in _off(data, one)),
    ]


def mended(data: Any, options: FiguresOptions) -> Any | None:
    """`data` with its sums put right by changing values of tables; None where that alone does not help."""
    mending = copy.deepcopy(data)
    for asked in options.sums:
        entries = [
            (table, entry)
            for table in options.tables
            for entry in _values(mending, table.at)
            if isinstance(entry, dict) and any(f"{path}.{table.value}" in asked.at for path in table.at)
        ]
        values = [value for table, entry in entries if _is_number(value := entry.get(table.value))]
        if len(values) < len(entries):
            return None
        most = [table.most.get(str(entry.get(table.key)), 0.0) for table, entry in entries]
        fitting = fitted(values, asked.total, [table.least for table, _ in entries], most)
        if fitting is None:
            return None
        for (table, entry), value in zip(entries, fitting, strict=True):
            entry[table.value] = value
    return None if figure_faults(mending, options) else mending


def fitted(values: Sequence[float], total: float, least: Sequence[float], most: Sequence[float]) -> list[int] | None:
    """Whole numbers that make `total`, each from `least` to `most` and in proportion to `values` as far as those allow;
    None where there are none such. What is over or missing goes to those that are free to move, again and again, and
    the last units by largest remainder."""
    low, high = [math.ceil(x) for x in least], [math.floor(x) for x in most]
    if (
        total != int(total)
        or sum(low) > total
        or sum(high) < total
        or any(a > b for a, b in zip(low, high, strict=True))
    ):
        return None
    exact = [max(v, 1e-9) for v in values]
    # Of all factors, the one that makes the sum within the limits: it rises with the factor, so it is found by halving.
    small, large = 0.0, total / min(exact)
    for _ in range(100):
        factor = (small + large) / 2
        reached = sum(min(max(v * factor, lo), hi) for v, lo, hi in zip(exact, low, high, strict=True))
        small, large = (factor, large) if reached < total else (small, factor)
    aimed = [min(max(v * large, lo), hi) for v, lo, hi in zip(exact, low, high, strict=True)]
    whole = [min(max(math.floor(a + 1e-9), lo), hi) for a, lo, hi in zip(aimed, low, high, strict=True)]
    for at in sorted(range(len(whole)), key=lambda i: (whole[i] - aimed[i], i)):
        step = min(high[at] - whole[at], int(total) - sum(whole))
        whole[at] += min(step, 1)
    return whole if sum(whole) == total else None


def _outside(data: Any, table: TableSpec) -> list[str]:
    faults = []
    for entry in _values(data, table.at):
        if not isinstance(entry, Mapping) or (table.unless and entry.get(table.unless) is True):
            continue
        name, value = str(entry.get(table.key)), entry.get(table.value)
        if name not in table.most:
            faults.append(f"{table.key} {name!r} is not known")
        elif not _is_number(value) or not table.least <= value <= table.most[name]:
            faults.append(f"{table.value} of {name} is {value}, allowed are {table.least:g} to {table.most[name]:g}")
    return faults


def _twice(data: Any, distinct: DistinctSpec) -> list[str]:
    told = [str(value) for value in _values(data, distinct.at)]
    return [
        f"{value!r} stands there {told.count(value)} times" for value in dict.fromkeys(told) if told.count(value) > 1
    ]


def _off(data: Any, asked: SumSpec) -> list[str]:
    values = _values(data, asked.at)
    if any(not _is_number(value) for value in values):
        return [f"what stands at {', '.join(asked.at)} are not all numbers"]
    found = sum(values)
    same = math.isclose(found, asked.total, abs_tol=1e-6)
    return [] if same else [f"the sum of {', '.join(asked.at)} is {found:g}, it has to be {asked.total:g}"]


def _values(data: Any, paths: Sequence[str]) -> list[Any]:
    return [value for path in paths for value, _ in at_path(data, path.split("."), None)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
