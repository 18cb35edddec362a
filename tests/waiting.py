"""Waiting for what another thread or process does, without a fixed sleep."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0, what: str = "it") -> None:
    """Returns as soon as `condition()` holds; fails the test when it does not for `timeout_s`. `what` is waited for.

    What takes long is asked for less often: on two cores the asking, often a request, delays what it waits for."""
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < timeout_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(min(0.2, 0.02 + waited / 20))
