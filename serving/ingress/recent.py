"""The traces of the last moments, in memory: feedback often comes before its trace is in the database."""

from __future__ import annotations

from collections import OrderedDict

from serving.schema import Trace
from serving.store.codec import decode_trace, encode_trace


class RecentTraces:
    """The newest `size` traces this replica answered. Used from the event loop only, so it needs no lock.

    Kept as text: thousands of nested lists would be walked by every full garbage collection.
    """

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self._traces: OrderedDict[str, str] = OrderedDict()

    def remember(self, trace: Trace) -> None:
        self._traces[trace.trace_id] = encode_trace(trace)
        if len(self._traces) > self._size:
            self._traces.popitem(last=False)

    def get(self, trace_id: str) -> Trace | None:
        text = self._traces.get(trace_id)
        return None if text is None else decode_trace(text)
