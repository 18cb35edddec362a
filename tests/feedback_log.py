"""Made-up answers and what people did with them, for tests of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.schema import DataSpec, FeedbackEvent, Trace

NOW = 1_000_000.0
PLAIN = DataSpec(unseen_items_ratio=0, position_bias=False, min_examples=1)
SHOWN = [["a", 0.9], ["b", 0.85], ["c", 0.5], ["d", 0.4]]


def trace(trace_id: str = "t", query: str = "red wine", shown: Sequence[Any] = SHOWN, **changes: Any) -> Trace:
    line = {"raw": query, "abstained": False, "shown": [[i, s, "dense", {"dense": s}] for i, s in shown]}
    values = {"at_s": NOW, "user": "ann", **changes}
    return Trace(trace_id, "shop", "1", query=query, lines=[line], **values)


def event(name: str = "order", selected: str | None = "b", **changes: Any) -> FeedbackEvent:
    values = {"event_id": f"{name}-{selected}", "trace_id": "t", "at_s": NOW, "user": "ann", **changes}
    return FeedbackEvent(app="shop", release="1", event=name, selected=selected, **values)


def many(count: int, shown: int = 6, selected: int = 0) -> tuple[list[FeedbackEvent], list[Trace]]:
    """`count` queries at one-second steps, each chosen of `shown` items of its own."""
    traces, events = [], []
    for n in range(count):
        items = [[str((n * 7 + k) % 1000), round(0.9 - k / 10, 2)] for k in range(shown)]
        traces.append(trace(f"t{n}", f"query {n}", items, at_s=NOW + n))
        events.append(
            event("order", items[selected][0], event_id=f"e{n}", trace_id=f"t{n}", at_s=NOW + n, user=f"u{n % 7}")
        )
    return events, traces
