"""Frozen sets of questions with their right answers: what they are, and how an app's sets are read.

`training.measure` reads them, `training.evaluate` asks them. Only `load_cases` touches the outside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import CasesInvalid
from training.source import SCRIPT_LIMIT_S, open_source


@dataclass(frozen=True, slots=True)
class Case:
    """One question. `accept` holds every right id; none of them means that the searcher should abstain. `also` names
    slices it belongs to besides `slice`; `record` is the structured part of the query, `like` the items that the
    results should resemble."""

    query: str
    accept: frozenset[str]
    slice: str = "all"
    quantity: int | None = None
    vintage: int | None = None
    also: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict, hash=False)
    like: tuple[str, ...] = ()


def load_cases(source: str, folder: Path, limit_s: float = SCRIPT_LIMIT_S) -> list[Case]:
    """The cases of `source`, as an app.yaml names it: a JSON-lines file, or a Python script with its arguments whose
    output is JSON lines, relative to `folder`. A script runs in its own folder for at most `limit_s` seconds.

    Raises CasesInvalid, naming file and line.
    """
    with open_source(source, folder, "evaluation", CasesInvalid, limit_s) as stream:
        try:
            text = stream.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CasesInvalid(f"{source} is not UTF-8 text: {error}") from None
    return parse_cases(text, source)


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
    if not isinstance(record := raw.get("record", {}), dict):
        raise CasesInvalid(f"{where}: `record` has to be a JSON object")
    if not isinstance(like := raw.get("like", []), list) or not all(isinstance(i, str) for i in like):
        raise CasesInvalid(f"{where}: `like` has to be a list of ids")
    if not isinstance(query, str) or not (query.strip() or record or like):
        raise CasesInvalid(f"{where}: `query` has to be a text, empty only beside a `record` or `like`")
    if not isinstance(accept, list) or not all(isinstance(i, str) for i in accept):
        raise CasesInvalid(f"{where}: `accept` has to be a list of ids; an empty list means: abstain")
    if not isinstance(slice_, str) or not slice_:
        raise CasesInvalid(f"{where}: `slice` has to be a text")
    quantity, vintage = _whole(raw, "quantity", where), _whole(raw, "vintage", where)
    return Case(query, frozenset(accept), slice_, quantity, vintage, record=record, like=tuple(like))


def _whole(raw: Mapping[str, Any], key: str, where: str) -> int | None:
    value = raw.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise CasesInvalid(f"{where}: `{key}` has to be a whole number or null, not {value!r}")
    return value
