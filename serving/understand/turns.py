"""What a session remembers of a query: made by the ingress once it was answered, read by the next query's understander.

What matters is `Turn.understood`: {"intent", "entities", "rest"}. Filters are not in it: they follow from the entities,
and those that the request itself gave are the client's to send again.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.schema import Turn, Understood


def turn_of(understood: Understood, text: str, items: Sequence[str], at_s: float) -> Turn:
    """`text`: the answer in words, "" where none was made; `items`: the ids shown, best first; `at_s`: Unix seconds."""
    said = {"intent": understood.intent, "entities": dict(understood.entities), "rest": understood.rest}
    return Turn(understood.raw, text, tuple(items), said, at_s)
