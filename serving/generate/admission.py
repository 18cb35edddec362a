"""How much of an engine's KV cache its requests may come to need, and when one more is refused. Pure; a replica of the
engine asks it for every request.

A request needs a block for every so many tokens of its prompt and of the longest answer it may get. Most answers are
shorter, and prefixes are shared, so more is promised than there is; what is promised beyond that would only wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from serving.errors import Overloaded

PROMISED_RATIO = 2.0
"""Blocks that may be promised for each there is: the ones beyond are a queue."""
LOOK_BACK_S = 10.0
SHORTEST_S, LONGEST_S = 1.0, 30.0


class KvRoom:
    """`admit` reserves blocks or refuses, `release` gives them back. `monotonic`: seconds."""

    def __init__(self, blocks: int, block_tokens: int, monotonic: Callable[[], float]) -> None:
        self.blocks = blocks
        self.reserved = 0
        self._block_tokens = block_tokens
        self._monotonic = monotonic
        self._released: deque[tuple[float, int]] = deque()

    def admit(self, tokens: int) -> int:
        """Reserve room for so many tokens; returns the blocks, for `release`. Raises Overloaded."""
        needed = max(1, math.ceil(tokens / self._block_tokens))
        missing = self.reserved + needed - PROMISED_RATIO * self.blocks
        # What is alone has to be tried, however large it is: vLLM refuses what can never fit.
        if missing > 0 and self.reserved:
            raise Overloaded(
                f"the engine's KV cache has {self.blocks} blocks, {self.reserved} are promised and this request needs "
                f"{needed}",
                retry_after_s=self._until_free_s(missing),
            )
        self.reserved += needed
        return needed

    def release(self, blocks: int) -> None:
        self.reserved -= blocks
        self._released.append((self._monotonic(), blocks))
        self._forget()

    def _forget(self) -> None:
        oldest_s = self._monotonic() - LOOK_BACK_S
        while self._released and self._released[0][0] < oldest_s:
            self._released.popleft()

    def _until_free_s(self, blocks: float) -> float:
        """At the rate of the last seconds."""
        self._forget()
        freed = sum(count for _, count in self._released)
        seconds = blocks * LOOK_BACK_S / freed if freed else LONGEST_S / 3
        return round(min(max(seconds, SHORTEST_S), LONGEST_S), 1)
