"""What users did, as the funnels learn from it: feedback with the record of its request, and what an app brings along
(`feedback.source`).

`training.index` calls `collect` where an app has such sources. People are pseudonyms from here on; who is forgotten is
left out. The newest event is what "now" means, so that a build depends on nothing but its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from registry.content import digest_json
from registry.database import Database
from serving.config import ServingConfig
from serving.ports import FeedbackStore
from serving.schema import AppSpec, FeedbackEvent, Trace
from serving.schema.pseudonym import pseudonym
from serving.store import SqlFeedbackStore
from serving.store.people import SqlPeople, ensure_people_secret
from training.errors import DatasetInvalid
from training.source import open_source

EVENTS_PER_PAGE = 500
_KEYS = frozenset({"user", "item", "event", "at_s", "record"})


@dataclass(frozen=True, slots=True)
class Interaction:
    """`user` (a pseudonym, "" for nobody) did `event` with `item` at `at_s`, Unix seconds; `record` is that of the
    request it came of."""

    user: str
    item: str
    event: str
    at_s: float
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interactions:
    """In the order of time, then of content. `fingerprint`: SHA-256 hex over all of them."""

    rows: tuple[Interaction, ...] = ()

    @property
    def people(self) -> list[str]:
        return sorted({row.user for row in self.rows if row.user})

    @property
    def fingerprint(self) -> str:
        return digest_json({"interactions": [asdict(row) for row in self.rows]})


@dataclass(frozen=True, slots=True)
class Collecting:
    """Where interactions come from. `feedback` None: only from the app's own file. `until_s`: nothing later counts."""

    spec: AppSpec
    app_folder: Path
    secret: bytes
    feedback: FeedbackStore | None = None
    forgotten: Collection[str] = ()
    until_s: float | None = None

    def collect(self) -> Interactions:
        """Raises DatasetInvalid for a source that cannot be read, StoreUnavailable."""
        gone = frozenset(self.forgotten)
        rows = [row for row in (*self._brought(), *self._fed_back()) if row.user not in gone or not row.user]
        rows = [row for row in rows if self.until_s is None or row.at_s <= self.until_s]
        return Interactions(tuple(sorted(rows, key=lambda row: (row.at_s, row.user, row.item, row.event))))

    def _brought(self) -> Iterator[Interaction]:
        source = self.spec.feedback.source
        if source is None:
            return
        with open_source(source, self.app_folder, "interactions", DatasetInvalid) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._parse(line, f"{source}, line {number}")

    def _parse(self, line: bytes, where: str) -> Interaction:
        try:
            raw = orjson.loads(line)
            if unknown := sorted(set(raw) - _KEYS):
                raise ValueError(f"unknown keys {unknown}")
            user, item, event = (raw[key] for key in ("user", "item", "event"))
            if not all(isinstance(one, str) for one in (user, item, event)):
                raise TypeError("user, item and event are text")
            if event not in self.spec.feedback.reward and event != "view":
                raise ValueError(f"feedback.reward has no event {event!r}")
            return Interaction(
                pseudonym(self.secret, user), item, event, float(raw["at_s"]), dict(raw.get("record", {}))
            )
        except (ValueError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise DatasetInvalid(f"{where}: no interaction {{user, item, event, at_s, record}}: {error!r}") from None

    def _fed_back(self) -> Iterator[Interaction]:
        store, after = self.feedback, 0
        if store is None:
            return
        while page := store.events(self.spec.name, after, EVENTS_PER_PAGE):
            traces = store.traces([event.trace_id for _, event in page])
            for _, event in page:
                yield from self._of_event(event, traces.get(event.trace_id))
            after = page[-1][0]

    def _of_event(self, event: FeedbackEvent, trace: Trace | None) -> Iterator[Interaction]:
        user = event.user or (trace.user if trace else None)
        line = trace.lines[event.line] if trace is not None and event.line < len(trace.lines) else {}
        record = line.get("record") or {}
        for item in (event.selected, *event.rejected):
            if item is not None:
                name = event.event if item == event.selected else "reject"
                yield Interaction(pseudonym(self.secret, user or ""), item, name, event.at_s, dict(record))


def of_home(spec: AppSpec, app_folder: Path, database: Database, config: ServingConfig) -> Interactions:
    """All that is known of an app's users in this home, without those who are forgotten. Whoever is in it is on record
    as such when it returns, so that `palate forget` can name the releases. Raises as `Collecting.collect`, OSError."""
    people = SqlPeople(database)
    secret = ensure_people_secret(config.home, config.secrets)
    feedback, forgotten = SqlFeedbackStore(database), people.forgotten(spec.name)
    found = Collecting(spec, app_folder, secret, feedback, forgotten).collect()
    people.record_trained(spec.name, found.fingerprint, found.people)
    return found
