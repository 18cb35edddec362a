"""The understander for queries that are one question each: it only trims white space.

Called by the pipeline; the default of `understand.engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serving.schema import Query, Understood


class Plain:
    """One entry per query, its text as written."""

    def understand(self, queries: Sequence[Query]) -> list[list[Understood]]:
        """As `serving.ports.Understander`."""
        return [[Understood(replace(query, text=query.text.strip()), query.text)] for query in queries]
