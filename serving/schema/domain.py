"""Items, queries and candidates: the values that travel through the pipeline.

Plain dataclasses, not pydantic: they are made by the thousand on the hot path, and their input was validated before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Filters = Mapping[str, Any]
"""Attribute name -> a value, a list of values (any of them), or a range `{"gte": 1, "lt": 9}`. In place of a number a
range takes `{"least_of": [ids]}` or `{"most_of": [ids]}`: the least or the most that these items have."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of an app's catalogue. `fields` are shown and searched, `attributes` are filtered on."""

    id: str
    fields: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier query of a session and what was answered: `text` in words ("" where nothing was generated), `items`
    the ids shown, best first, `understood` what the understand phase made of the query (intent, entities, filters)."""

    query: str
    text: str
    items: tuple[str, ...] = ()
    understood: Mapping[str, Any] = field(default_factory=dict)
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Query:
    """One text to search for, after validation. `top_k` results are wanted of the items that pass `filters`.

    `record` is the structured part, for embedders that read one. `like` are ids of items that the results should
    resemble; they are not among the results themselves. With either, the text may be empty. `history` are the turns of
    its session that are remembered, oldest first. `prefer` says, in the form of filters, what results had better have:
    sources that know attributes weigh it, nothing is left out for it.
    """

    text: str
    top_k: int = 10
    filters: Filters = field(default_factory=dict)
    user: str | None = None
    session: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    like: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()
    prefer: Filters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Understood:
    """What the understand phase makes of one query text: one entry per line of an order, else exactly one.

    `query.text` is the cleaned text to retrieve with; `raw` is the line as it was written. `quantity` is the number as
    written, in `unit` ("bottle", "box", or None where the line names none). `intent` is one of the app's own ("" where
    the engine names none), `entities` what it found in the text, `confidence` 0..1; its filters stand in
    `query.filters`, beside those that the request gave, which always hold. `engine` is what made it ("rules", "llm", ""
    for engines that only read lines), `rest` the words that are no entity.
    """

    query: Query
    raw: str
    quantity: int | None = None
    vintage: int | None = None
    unit: str | None = None
    intent: str = ""
    entities: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 1.0
    engine: str = ""
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item a source proposes. `score` is comparable within its source; calibrated sources keep it in 0..1.

    `scores` holds what each source said of it, by source name, once candidates of several sources were merged.
    `document` is the JSON text of the item's fields, spliced into the answer as it is.
    """

    id: str
    score: float
    source: str
    scores: Mapping[str, float] = field(default_factory=dict)
    document: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one `Understood`: its candidates, best first, or none of them good enough (`abstained`)."""

    candidates: Sequence[Candidate]
    abstained: bool = False
