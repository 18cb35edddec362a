"""People in what is learnt: whom a data set holds, and forgetting them.

`palate forget` calls `forget`; `training.run` calls `purge` before it builds a data set, and `record_trained` when one
is used. Both removals are one: whoever's pseudonym is on the list of the forgotten loses traces, feedback, taught
words, sessions and what waits in spools. The list comes first, so that a process killed half way, and whatever arrives
later from a spool of another machine, is caught by the next purge, and meanwhile by the building of data sets, which
leaves the forgotten out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from registry.ports import ReleaseStore
from serving.ports import FeedbackStore, SessionStore
from serving.schema.pseudonym import pseudonym
from serving.store.people import EVERY_APP, SqlPeople, forget_spooled
from training.dataset.example import load_info, people_in
from training.lineage import dataset_key, started_from_key, trained_key

PEOPLE_AT_ONCE = 50_000


class TrainedRelease(NamedTuple):
    """A version of an app's registered model whose lineage names a data set that held the person."""

    app: str
    version: int
    datasets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What was removed. `datasets`: app -> the fingerprints of the data sets that held the person (`releases_of` says
    what was made of them). `spools_in_use` files belong to processes that run: what they hold of the person is dropped
    once it is in the database."""

    pseudonym: str
    apps: tuple[str, ...]
    traces: int = 0
    events: int = 0
    words: int = 0
    spooled: int = 0
    spools_in_use: int = 0
    turns: int = 0
    datasets: Mapping[str, Sequence[str]] = field(default_factory=dict)


class People(Protocol):
    """What `SqlPeople` offers here."""

    def record_trained(self, app: str, fingerprint: str, pseudonyms: Iterable[str]) -> None: ...


def record_trained(people: People, app: str, fingerprint: str, dataset: Path) -> None:
    """The people in the folder `dataset` are in what is made of it. Call it before training begins: a release must
    never be without it. Again does nothing. Raises DatasetInvalid for a folder that is not complete, StoreUnavailable.
    """
    load_info(dataset)
    told = people_in(dataset)
    while chunk := list(islice(told, PEOPLE_AT_ONCE)):
        people.record_trained(app, fingerprint, sorted(set(chunk)))


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Everything a person may be in. `spool` is the folder of this machine's feedback spool. A session is theirs by its
    user, or by its own name: a user's id, or the pseudonym of one."""

    feedback: FeedbackStore
    people: SqlPeople
    secret: bytes
    spool: Path
    sessions: SessionStore

    def forget(self, user: str, app: str | None = None) -> ForgetReport:
        """Remove `user` from one app, or from every app of this home and those to come. Durable when it returns;
        repeated, or done twice at once, it does no harm. Raises StoreUnavailable, OSError for a spool that cannot be
        rewritten; done again, it goes on."""
        name = pseudonym(self.secret, user)
        self.people.add_forgotten(EVERY_APP if app is None else app, name)
        apps = self._apps() if app is None else [app]
        report = self._remove(apps, frozenset([name]))
        found = self.people.trained(name)
        datasets = {one: prints for one, prints in found.items() if app in (None, one)}
        return ForgetReport(name, tuple(apps), *report, datasets=datasets)

    def purge(self, app: str) -> ForgetReport:
        """Remove again whoever is forgotten in `app`: what came later from spools, or from the person. Reads every
        trace and event of the app where anybody is forgotten, nothing otherwise."""
        gone = self.people.forgotten(app)
        return ForgetReport("", (app,), *(self._remove([app], gone) if gone else ()))

    def _remove(self, apps: Sequence[str], gone: frozenset[str]) -> tuple[int, int, int, int, int, int]:
        known: dict[str, bool] = {}

        def is_gone(user: str) -> bool:
            if user not in known:
                known[user] = pseudonym(self.secret, user) in gone
            return known[user]

        spooled, in_use = forget_spooled(
            self.spool, lambda event: event.app in apps and event.user is not None and is_gone(event.user)
        )
        traces = events = words = turns = 0
        for app in apps:
            removed = self.feedback.forget(app, is_gone)
            traces, events = traces + removed.traces, events + removed.events
            words += self.people.forget_words(app, is_gone)
            turns += self.sessions.forget(app, lambda name: name in gone or is_gone(name))
        return traces, events, words, spooled, in_use, turns

    def _apps(self) -> list[str]:
        return sorted({*self.feedback.apps(), *self.people.apps_with_words(), *self.sessions.apps()})


def releases_of(store: ReleaseStore, datasets: Mapping[str, Sequence[str]]) -> tuple[TrainedRelease, ...]:
    """The releases that learnt from one of these data sets, newest first per app: by their own training, or because
    that began with a component of a release that did. Raises RegistryUnavailable."""
    return tuple(one for app, prints in sorted(datasets.items()) for one in _learnt(store, app, frozenset(prints)))


def _learnt(store: ReleaseStore, app: str, fingerprints: frozenset[str]) -> list[TrainedRelease]:
    found: list[TrainedRelease] = []
    behind: dict[str, frozenset[str]] = {}
    """Digest of a component -> those of the data sets that it, or what it began with, was trained on."""
    for version in reversed(store.versions(app)):
        release = version.release
        used: set[str] = set()
        for component in release.components:
            training = release.lineage.get(trained_key(component.name))
            if training is not None:
                own = fingerprints & {release.lineage.get(dataset_key(training), "")}
                own |= behind.get(release.lineage.get(started_from_key(training), ""), frozenset())
                behind[component.digest] = behind.get(component.digest, frozenset()) | own
                used |= own
        used |= fingerprints.intersection(release.lineage.values())
        if used:
            found.append(TrainedRelease(app, version.version, tuple(sorted(used))))
    return found[::-1]
