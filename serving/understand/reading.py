"""From what one utterance says to what is understood of it: what the conversation adds, and the filters that follow.

Both engines make a `Reading`; `understood` completes it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serving.components.lexicon import Lexicon
from serving.schema import Filters, Query, Understood

MOST_CONFIDENT = 0.99
ALONE = 0.5
"""Of the confidence, where an utterance goes on from one that is not there."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an utterance says by itself. `words`: (kind, value) -> the spelling that named it. `exact` are the kinds
    whose words were found as the lexicon spells them; `confidence` 0..1."""

    intent: str = ""
    entities: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[tuple[str, str], str] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    relatives: tuple[str, ...] = ()
    follows: bool = False
    rest: str = ""
    confidence: float = 0.0
    engine: str = "rules"


def understood(reading: Reading, query: Query, lexicon: Lexicon) -> Understood:
    """With what the turn before said, where this one goes on from it: of the same kind, what is said now counts. A
    relative (`더 싼`) is below, or above, everything that was shown then."""
    entities, rest, intent = dict(reading.entities), reading.rest, reading.intent
    confidence = reading.confidence
    if reading.follows or reading.relatives:
        if query.history:
            last = query.history[-1]
            before = _mapping(last.understood.get("entities"))
            entities = _joined(before, entities)
            rest = " ".join(dict.fromkeys([*str(last.understood.get("rest", "")).split(), *rest.split()]))
            intent = intent or str(last.understood.get("intent", ""))
            for name in reading.relatives:
                _add_relative(entities, lexicon, name, last.items)
        else:
            confidence *= ALONE
    text = " ".join([*lexicon.words(entities, reading.words), rest]).strip()
    asked = replace(
        query,
        text=text or query.text.strip(),
        filters=_with_request(lexicon.filters(entities), query.filters),
        prefer={**lexicon.filters(entities, prefer=True), **query.prefer},
    )
    return Understood(
        asked,
        query.text,
        intent=intent or lexicon.spec.default_intent,
        entities=entities,
        confidence=round(min(confidence, MOST_CONFIDENT), 3),
        engine=reading.engine,
        rest=rest,
    )


def _joined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """`치킨 말고` takes 치킨 back; it rules it out only where nothing else of its kind was named."""
    joined = {**before, **now}
    for kind, said in now.items():
        if isinstance(said, Mapping) and "not" in said and isinstance(before.get(kind), list):
            left = [value for value in before[kind] if value not in said["not"]]
            joined[kind] = left or said
    return joined


def _add_relative(entities: dict[str, Any], lexicon: Lexicon, name: str, shown: tuple[str, ...]) -> None:
    relative = lexicon.spec.relative.get(name)
    if relative is None or not shown:
        return
    before = _mapping(entities.get(relative.amount))
    bound = {"lt": {"least_of": list(shown)}} if relative.than == "less" else {"gt": {"most_of": list(shown)}}
    entities[relative.amount] = {**before, **bound}


def _with_request(own: Filters, request: Filters) -> dict[str, Any]:
    """Both hold: of two ranges every bound, else what the request said."""
    joined = dict(own)
    for name, wanted in request.items():
        mine = joined.get(name)
        both = isinstance(mine, Mapping) and isinstance(wanted, Mapping)
        joined[name] = {**mine, **wanted} if both and isinstance(mine, Mapping) else wanted
    return joined


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
