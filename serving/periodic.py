"""A thread that does one thing again and again: polls, reports, flushes. What it calls may block; nobody waits for it.

The router and the evidence recorder run one each for whatever talks to a database or to MLflow, so that neither the
event loop nor one another is ever held up by a store that is away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from serving.logs import get_log

log = get_log(__name__)


class Periodic:
    """Calls `work` about every `every_s` seconds, and at once after `wake`. What `work` raises is logged when it first
    happens, and again when something else does."""

    def __init__(self, name: str, every_s: float, work: Callable[[], None]) -> None:
        self._name = name
        self._every_s = every_s
        self._work = work
        self._wake = threading.Event()
        self._closed = False
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Call `work` no more. False for one that hangs: it is left behind after `timeout_s`."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closed:
            try:
                self._work()
                self._failure = ""
            except Exception as error:  # the outermost loop of a worker must not end
                if (failure := repr(error)) != self._failure:
                    self._failure = failure
                    log.warning("periodic.failed", worker=self._name, error=failure, exc_info=True)
            self._wake.wait(self._every_s)
            self._wake.clear()
