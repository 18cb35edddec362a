"""Items, traces and events as the JSON text that is stored, and back; and the checks every store makes on its input.

The SQL stores, the memory stand-ins and the feedback spool share it, so that all of them keep exactly the same.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import orjson

from serving.errors import BadRequest
from serving.schema import FeedbackEvent, Item, Trace, Turn

MAX_ID_CHARS = 256
_CURSOR_PREFIX = b"after:"
_TRACE_KEYS = frozenset(f.name for f in fields(Trace))
MOST_TURNS = 100
"""Turns of a session that are kept; older ones go."""
MOST_TURN_CHARS, MOST_TURN_ITEMS, MOST_UNDERSTOOD_CHARS = 2000, 50, 4000
"""What is kept of a turn: of its query and of its answer so many characters each, of what was shown so many ids."""
_TURN_KEYS = frozenset(f.name for f in fields(Turn))
_EVENT_KEYS = frozenset(f.name for f in fields(FeedbackEvent))


class ItemRow(NamedTuple):
    """An item as it is stored: its two JSON objects as text."""

    id: str
    fields: str
    attributes: str


def encode_item(item: Item) -> ItemRow:
    """Raises BadRequest that names the item when its id cannot be one or its values are not JSON."""
    check_id(item.id, "id")
    return ItemRow(
        item.id,
        _to_json(item.fields, f"fields of item {item.id!r}", "fields"),
        _to_json(item.attributes, f"attributes of item {item.id!r}", "attributes"),
    )


def decode_item(item_id: str, document: str, attributes: str) -> Item:
    return Item(item_id, orjson.loads(document), orjson.loads(attributes))


def encode_trace(trace: Trace) -> str:
    """Raises BadRequest when it cannot be stored."""
    check_id(trace.trace_id, "trace_id")
    return _to_json(trace, f"trace {trace.trace_id}", "trace")


def decode_trace(text: str | bytes) -> Trace:
    known = _known(text, _TRACE_KEYS)
    return Trace(**{**known, "lines": tuple(known["lines"])})


def encode_event(event: FeedbackEvent) -> str:
    """One line without line breaks. Raises BadRequest when it cannot be stored."""
    check_id(event.event_id, "event_id")
    check_id(event.trace_id, "trace_id")
    return _to_json(event, f"event {event.event_id}", "event")


def decode_event(text: str | bytes) -> FeedbackEvent:
    """Raises ValueError for what `encode_event` did not write."""
    known = _known(text, _EVENT_KEYS)
    try:
        return FeedbackEvent(**{**known, "rejected": tuple(known.get("rejected", ()))})
    except TypeError as error:
        raise ValueError(f"not a feedback event: {error}") from None


def encode_turn(turn: Turn) -> str:
    """What is longer than a turn may be is cut; an understanding that is too large is not kept at all, because half of
    one says something else. Raises BadRequest when it cannot be stored."""
    understood = turn.understood
    if len(_to_json(understood, "turn", "understood")) > MOST_UNDERSTOOD_CHARS:
        understood = {}
    kept = Turn(
        turn.query[:MOST_TURN_CHARS], turn.text[:MOST_TURN_CHARS], turn.items[:MOST_TURN_ITEMS], understood, turn.at_s
    )
    return _to_json(kept, "turn", "turn")


def decode_turn(text: str | bytes) -> Turn:
    known = _known(text, _TURN_KEYS)
    return Turn(**{**known, "items": tuple(known.get("items", ()))})


def check_id(value: str, field: str) -> None:
    """Ids are one line of visible text everywhere: in files, in logs and in cursors."""
    if not 0 < len(value) <= MAX_ID_CHARS or not value.isprintable():
        raise BadRequest(
            f"{field} {value[:40]!r} cannot be used: give 1 to {MAX_ID_CHARS} printable characters", field=field
        )


def check_limit(limit: int) -> None:
    if limit < 1:
        raise BadRequest(f"limit is {limit}: ask for at least 1", field="limit")


def encode_cursor(last_id: str) -> str:
    return base64.urlsafe_b64encode(_CURSOR_PREFIX + last_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str:
    """The id to go on after; "" for None. Raises BadRequest for what `encode_cursor` did not make."""
    if cursor is None:
        return ""
    try:
        raw = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        if raw.startswith(_CURSOR_PREFIX):
            return raw.removeprefix(_CURSOR_PREFIX).decode()
    except (binascii.Error, UnicodeError):
        pass
    raise BadRequest(
        "the cursor is not one that a page returned: send `next_cursor` unchanged, or none", field="cursor"
    )


def _to_json(value: Any, what: str, field: str) -> str:
    try:
        return orjson.dumps(value, default=_plain).decode()
    except TypeError as error:  # orjson's JSONEncodeError is one
        raise BadRequest(f"the {what} cannot be stored as JSON: {error}", field=field) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _known(text: str | bytes, keys: frozenset[str]) -> dict[str, Any]:
    """The keys this version knows: a newer one may have written more."""
    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return {key: v for key, v in value.items() if key in keys}
