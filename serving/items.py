"""Keeps a replica up with what changes beside its release: the catalogue, and the abbreviations its users taught.

Every replica that holds a catalogue runs one `Followers`. The item store is asked for changes by sequence number, so
none is missed, whoever wrote them; after a restart it starts again from the number its release was built at.

A change that a release cannot take (an attribute of another kind than its app.yaml said, say) is left out, so that it
does not hold up those after it: the log and a metric name it, and the item stays as that release last knew it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from serving import metrics
from serving.errors import BadRequest, StoreUnavailable
from serving.logs import get_log
from serving.ports import Expansions, ItemStore
from serving.schema import Item

PAGE = 500

AT_FAULT = (BadRequest, ValueError, TypeError, LookupError, ArithmeticError)
"""Errors that come from what a change holds. Any other may pass (an embedder that restarts), so it is tried again."""

log = get_log(__name__)


class ItemFollower:
    """Applies the changes of `app` after `seq`, oldest first."""

    def __init__(
        self, store: ItemStore, app: str, seq: int, apply: Callable[[Sequence[Item], Sequence[str]], object]
    ) -> None:
        self._store = store
        self._app = app
        self._apply = apply
        self.seq = seq

    def catch_up(self) -> int:
        """Apply what there is; returns how many changes. Raises StoreUnavailable."""
        applied = 0
        while True:
            upserts, deletes, seq = self._store.changes(self._app, self.seq, PAGE)
            if not upserts and not deletes:
                return applied
            metrics.ITEMS_LAG.labels(self._app).set(max(0, self._store.sequence(self._app) - self.seq))
            self._apply_all(upserts, deletes)
            self.seq = seq
            applied += len(upserts) + len(deletes)
            metrics.ITEMS_LAG.labels(self._app).set(max(0, self._store.sequence(self._app) - self.seq))

    def _apply_all(self, upserts: Sequence[Item], deletes: Sequence[str]) -> None:
        """Apply the changes but those at fault, which are found by halving."""
        try:
            self._apply(upserts, deletes)
        except AT_FAULT as error:
            if len(upserts) + len(deletes) == 1:
                [item_id] = [*(item.id for item in upserts), *deletes]
                metrics.ITEMS_SKIPPED.labels(self._app).inc()
                log.error("follow.item_skipped", app=self._app, item=item_id, error=repr(error))
                return
            if upserts and deletes:
                self._apply_all(upserts, [])
                self._apply_all([], deletes)
            else:
                half = (len(upserts) + len(deletes)) // 2
                self._apply_all(upserts[:half], deletes[:half])
                self._apply_all(upserts[half:], deletes[half:])


class ExpansionStore(Protocol):
    def all(self, app: str) -> Expansions: ...

    def version(self, app: str) -> int: ...


class ExpansionFollower:
    """Hands the app's learned abbreviations on whenever their version moved."""

    def __init__(self, store: ExpansionStore, app: str, apply: Callable[[Expansions], None]) -> None:
        self._store = store
        self._app = app
        self._apply = apply
        self._version = 0

    def catch_up(self) -> int:
        """1 if there was something new, else 0. Raises StoreUnavailable."""
        version = self._store.version(self._app)
        if version == self._version:
            return 0
        self._apply(self._store.all(self._app))
        self._version = version
        return 1


class Followers:
    """Runs every follower of one release each `interval_s`, in one thread, until `close`."""

    def __init__(self, app: str, followers: Sequence[ItemFollower | ExpansionFollower], interval_s: float) -> None:
        self._app = app
        self._followers = followers
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"follow-{app}", daemon=True)

    def start(self) -> None:
        """Catches up once before it returns, where the database lets it; then goes on in the background."""
        self._catch_up_all(set())
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _follow(self) -> None:
        failing: set[int] = set()
        while not self._stop.wait(self._interval_s):
            failing = self._catch_up_all(failing)

    def _catch_up_all(self, failing: set[int]) -> set[int]:
        """The followers, by number, that could not; `failing` are those the log has already named."""
        failed = set()
        for number, follower in enumerate(self._followers):
            try:
                follower.catch_up()
            except StoreUnavailable as error:
                failed.add(number)
                if number not in failing:
                    log.warning("follow.unavailable", app=self._app, detail=error.detail)
            except Exception as error:
                failed.add(number)
                if number not in failing:
                    log.error("follow.failed", app=self._app, error=repr(error), exc_info=True)
        return failed
