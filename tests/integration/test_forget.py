"""`palate forget` on a real home: SQLite, a spool, a data set that was used, and releases made of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from registry.content import digest_folder
from registry.database import migrate, open_database
from registry.manifest import release_digest
from registry.memory_store import MemoryStore
from registry.schema import ComponentRef, Release
from serving.cli import main
from serving.errors import StoreUnavailable
from serving.schema import DataSpec, FeedbackEvent, Trace, Turn
from serving.schema.pseudonym import pseudonym
from serving.spool import SpoolFile
from serving.store import SqlExpansions, SqlFeedbackStore, SqlSessionStore
from serving.store.codec import encode_event
from serving.store.people import SqlPeople, ensure_people_secret
from training.dataset import DatasetRequest, Example, build_dataset
from training.people import Forgetting, TrainedRelease, record_trained, releases_of


def event(event_id: str, user: str | None, app: str = "shop", trace_id: str = "none") -> FeedbackEvent:
    return FeedbackEvent(event_id, trace_id, app, "1", "order", 5.0, user, raw="tea", selected="a")


class HomeOf:
    """A home with two people, ann and bob, in everything that `palate forget` looks into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"sqlite:///{root / 'palate.db'}"
        migrate(self.url)
        database = open_database(self.url)
        self.store, self.people, self.taught = SqlFeedbackStore(database), SqlPeople(database), SqlExpansions(database)
        self.secret = ensure_people_secret(root)
        self.sessions = SqlSessionStore(database)
        for app in ("shop", "cafe"):
            self.store.record_traces(
                [Trace(f"{app}-{u}", app, "1", 5.0, "tea", [{"raw": "tea"}], user=u) for u in ("ann", "bob")]
            )
            self.store.record_many([event(f"e-{u}", u, app, f"{app}-{u}") for u in ("ann", "bob")])
            self.taught.learn(app, "ann", {"t": "tea"})
            for user in ("ann", "bob"):
                self.sessions.append(app, f"of-{user}", pseudonym(self.secret, user), Turn("tea", "", at_s=5.0))
        (root / "spool").mkdir()

    @property
    def forgetting(self) -> Forgetting:
        return Forgetting(self.store, self.people, self.secret, self.root / "spool", self.sessions)

    def spool(self, name: str, *events: FeedbackEvent) -> Path:
        path = self.root / "spool" / name
        path.write_bytes(b"".join(encode_event(one).encode() + b"\n" for one in events))
        return path

    def turns(self, user: str) -> list[Turn]:
        return self.sessions.turns("shop", f"of-{user}", pseudonym(self.secret, user), 9, 0.0)

    def users(self, app: str) -> set[str | None]:
        return {one.user for _, one in self.store.events(app, 0, 100)}


@pytest.fixture
def home(tmp_path: Path) -> HomeOf:
    return HomeOf(tmp_path)


def palate(home: HomeOf, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["palate", *arguments, "--home", str(home.root)])
    for name in ("PALATE_DATABASE_URL", "PALATE_MLFLOW_URI"):
        monkeypatch.delenv(name, raising=False)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_person_is_removed_from_everything(
    home: HomeOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan = home.spool("1.jsonl", event("s1", "ann"), event("s2", "bob"))
    assert palate(home, monkeypatch, "forget", "ann", "--yes", "--json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["traces"], said["events"], said["words"], said["spooled"], said["turns"]) == (2, 2, 2, 1, 2)
    assert home.turns("ann") == []
    assert len(home.turns("bob")) == 1
    assert (said["apps"], said["datasets"], said["releases"]) == (["cafe", "shop"], {}, [])
    assert said["pseudonym"] == pseudonym(home.secret, "ann")
    assert home.users("shop") == home.users("cafe") == {"bob"}
    assert set(home.store.traces(["shop-ann", "shop-bob", "cafe-ann"])) == {"shop-bob"}
    assert home.taught.all("shop") == {}
    assert orphan.read_bytes() == encode_event(event("s2", "bob")).encode() + b"\n"
    assert b"ann" not in b"".join(p.read_bytes() for p in (home.root / "spool").iterdir())
    assert palate(home, monkeypatch, "forget", "ann", "--yes") == 0
    assert "removed 0 traces, 0 events" in capsys.readouterr().out


def test_one_app_only(home: HomeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert palate(home, monkeypatch, "forget", "ann", "--app", "shop", "--yes") == 0
    assert (home.users("shop"), home.users("cafe")) == ({"bob"}, {"ann", "bob"})
    assert home.people.forgotten("cafe") == frozenset()


def test_it_asks_before(home: HomeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert palate(home, monkeypatch, "forget", "ann") == 1
    assert home.users("shop") == {"ann", "bob"}


def test_what_comes_later_from_a_spool_is_left_out_of_data_sets_and_purged(home: HomeOf, tmp_path: Path) -> None:
    in_use = SpoolFile.create(home.root / "spool")
    in_use.append(encode_event(event("late", "ann")).encode())
    report = home.forgetting.forget("ann")
    assert (report.spooled, report.spools_in_use) == (0, 1)
    in_use.close()
    home.store.record(event("late", "ann"))  # as the endpoint's replay does

    data, forgotten = DataSpec(min_examples=1, unseen_items_ratio=0), home.people.forgotten("shop")
    extra = [Example(f"q{n}", "a", 1) for n in range(20)]
    request = DatasetRequest("shop", data, ["a"], home.secret, 9.0, home.store, extra=extra, forgotten=forgotten)
    info = build_dataset(request, tmp_path / "data")
    assert info.counts["events_forgotten"] == 1
    assert pseudonym(home.secret, "ann") not in (tmp_path / "data" / "train.jsonl").read_text()

    purged = home.forgetting.purge("shop")
    assert (purged.events, purged.spooled) == (1, 1)
    assert home.users("shop") == {"bob"}
    assert home.forgetting.purge("cafe").events == 0


def test_two_at_once_and_one_that_was_cut_short(home: HomeOf) -> None:
    class CutShort(SqlFeedbackStore):
        def forget(self, *_: object) -> Any:
            raise StoreUnavailable("the database went away")

    cut = Forgetting(CutShort(open_database(home.url)), home.people, home.secret, home.root / "spool", home.sessions)
    with pytest.raises(StoreUnavailable):
        cut.forget("ann")
    assert home.people.forgotten("shop") == {pseudonym(home.secret, "ann")}, "the list comes first"
    reports = []
    threads = [Thread(target=lambda: reports.append(home.forgetting.forget("ann"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.events for one in reports) == 2
    assert home.users("shop") == home.users("cafe") == {"bob"}


def publish(store: MemoryStore, folder: Path, lineage: dict[str, str], content: str) -> str:
    """A release with one component, `embedder.main`, that holds `content`; the component's digest."""
    folder.mkdir()
    (folder / "model").write_text(content)
    digest, size = digest_folder(folder)
    component = ComponentRef("embedder.main", "embedder", digest, size, digest)
    spec = {"name": "shop", "n": len(store.versions("shop"))}
    release = Release("shop", spec, (component,), 0, release_digest(spec, (component,)), lineage=lineage)
    store.publish(release, {digest: folder})
    return digest


def test_releases_that_learnt_from_a_person_are_named(home: HomeOf, tmp_path: Path) -> None:
    data = DataSpec(min_examples=1, unseen_items_ratio=0, train_ratio=0.98, validation_ratio=0.01)
    request = DatasetRequest("shop", data, ["a"], home.secret, 9.0, home.store)
    info = build_dataset(request, tmp_path / "data")
    for _ in range(2):
        record_trained(home.people, "shop", info.fingerprint, tmp_path / "data")
    store, by = MemoryStore(), {"embedder.main.trained_by": "main"}
    publish(store, tmp_path / "1", {}, "as it came")
    first = publish(store, tmp_path / "2", {**by, "train.main.dataset": info.fingerprint}, "trained on ann")
    other = {**by, "train.main.dataset": "another"}
    publish(store, tmp_path / "3", {**other, "train.main.started_from": first}, "trained on others from there")
    publish(store, tmp_path / "4", {**other, "train.main.started_from": ""}, "trained on others from the base")
    report = home.forgetting.forget("ann")
    assert report.datasets == {"shop": [info.fingerprint]}
    assert releases_of(store, report.datasets) == tuple(
        TrainedRelease("shop", number, (info.fingerprint,)) for number in (3, 2)
    )
    assert home.forgetting.forget("ann").datasets == report.datasets, "it can be asked again"
    assert home.forgetting.forget("bob").datasets == report.datasets, "both had a say, one of them is in the example"
    assert home.forgetting.forget("zed").datasets == {}
    assert home.forgetting.forget("bob", "cafe").datasets == {}
