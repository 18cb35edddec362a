"""Everything that may become an example, brought into the stage: feedback with its traces, and what the app adds.

Called by `training.dataset.build`, once per data set; reads events a page at a time and their traces with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from serving.schema import FeedbackEvent, Trace
from serving.schema.pseudonym import pseudonym
from training.dataset.example import Example
from training.dataset.extra import extra_examples
from training.dataset.join import examples_of, line_of
from training.dataset.keys import normalise, query_key
from training.dataset.request import DatasetRequest
from training.dataset.stage import Stage

EVENTS_PER_PAGE = 500
DAY_S = 86_400.0


@dataclass(slots=True)
class Collected:
    counts: Counter[str] = field(default_factory=Counter)
    feedback_seq: int = 0


class Collector:
    """Fills an open stage."""

    def __init__(self, request: DatasetRequest, stage: Stage) -> None:
        self._request = request
        self._stage = stage
        self._catalogue = frozenset(request.catalogue)
        self._forgotten = frozenset(request.forgotten)
        self._held_out = frozenset(map(normalise, request.held_out))
        self._collected = Collected()

    def collect(self) -> Collected:
        """Raises DatasetInvalid for extra examples that cannot be read, StoreUnavailable."""
        self._collected = Collected()
        if self._request.data.feedback and self._request.feedback is not None:
            for seq, event, trace in self._joined():
                self._collected.feedback_seq = seq
                self._collected.counts["events"] += 1
                self._add(self._of_event(event, trace))
        self._add(self._extra())
        return self._collected

    def _joined(self) -> Iterator[tuple[int, FeedbackEvent, Trace | None]]:
        store, until = self._request.feedback, self._request.until_seq
        assert store is not None  # collect
        after = 0
        while page := store.events(self._request.app, after, EVENTS_PER_PAGE):
            traces: Mapping[str, Trace] = store.traces([event.trace_id for _, event in page])
            for seq, event in page:
                if until is not None and seq > until:
                    return
                yield seq, event, traces.get(event.trace_id)
            after = page[-1][0]

    def _of_event(self, event: FeedbackEvent, trace: Trace | None) -> Iterator[Example]:
        request, counts = self._request, self._collected.counts
        age_limit_days = request.data.max_age_days
        if age_limit_days is not None and event.at_s < request.now_s - age_limit_days * DAY_S:
            counts["events_too_old"] += 1
            return
        people = [pseudonym(request.secret, user) for user in (event.user, trace.user if trace else None) if user]
        if not self._forgotten.isdisjoint(people):
            counts["events_forgotten"] += 1
            return
        line = line_of(event, trace)
        counts["events_without_trace"] += trace is None
        counts["answers_abstained"] += line.abstained
        counts["answers_replayed"] += trace is not None and trace.status == "replayed"
        yield from examples_of(event, line, people[0] if people else "", request.data, counts)

    def _extra(self) -> Iterator[Example]:
        request = self._request
        examples = request.extra
        if examples is None:
            source = request.data.extra
            examples = extra_examples(source, request.app_folder) if source else ()
        for example in examples:
            self._collected.counts["extra"] += 1
            named = replace(example, user=pseudonym(request.secret, example.user))
            if named.user in self._forgotten:
                self._collected.counts["extra_forgotten"] += 1
            else:
                yield named

    def _add(self, examples: Iterable[Example]) -> None:
        counts = self._collected.counts
        for example in examples:
            if example.item not in self._catalogue:
                counts["items_gone"] += 1
            elif self._held_out and normalise(example.query) in self._held_out:
                counts["held_out_queries"] += 1
            else:
                counts["collected"] += 1
                self._stage.add(query_key(example, self._request.per_user), example)
