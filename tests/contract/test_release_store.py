"""What every `ReleaseStore` promises, asked of the real MLflow server and of the in-memory stand-in."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from registry.errors import ReleaseNotFound, ReleaseRefused
from registry.manifest import TAG_RELEASE, release_digest
from registry.memory_store import MemoryStore
from registry.mlflow_server import MlflowServer
from registry.mlflow_store import COMPONENTS_EXPERIMENT, TAG_DIGEST, MlflowStore
from registry.ports import ReleaseStore
from registry.schema import Release
from tests.mlflow_fixture import component, make_release


@dataclass
class Harness:
    """A store, how often a component lies in it, and how to damage what it keeps."""

    store: ReleaseStore
    copies: Callable[[str], int]
    damage: Callable[[str], None]


def memory_harness() -> Harness:
    store = MemoryStore()

    def damage(digest: str) -> None:
        files = store.files[digest]
        files[next(iter(files))] += b"!"

    return Harness(store, lambda digest: int(digest in store.files), damage)


def component_runs(store: MlflowStore, digest: str) -> list[str]:
    client = store._client
    experiment = client.get_experiment_by_name(COMPONENTS_EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], f"tags.`{TAG_DIGEST}` = '{digest}'")
    return [run.info.run_id for run in runs]


def mlflow_harness(server: MlflowServer, home: Path) -> Harness:
    store = MlflowStore(server.uri)

    def damage(digest: str) -> None:
        for run_id in component_runs(store, digest):
            stored = next(p for p in home.glob(f"mlflow/artifacts/*/{run_id}/artifacts/**/*") if p.is_file())
            stored.write_bytes(stored.read_bytes() + b"!")

    return Harness(store, lambda digest: len(component_runs(store, digest)), damage)


@pytest.fixture(params=["memory", "mlflow"])
def harness(request: pytest.FixtureRequest) -> Harness:
    if request.param == "memory":
        return memory_harness()
    return mlflow_harness(*request.getfixturevalue("mlflow"))


@pytest.fixture
def store(harness: Harness) -> ReleaseStore:
    return harness.store


@pytest.fixture
def app() -> str:
    """An app nobody else used: all tests share one server."""
    return f"app-{uuid.uuid4().hex[:12]}"


def test_a_published_release_reads_back_as_it_was(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    version = store.publish(release, folders)
    assert version.version == 1
    assert version.release == release
    assert version.aliases == frozenset()
    assert version.tags[TAG_RELEASE] == release.digest
    assert version.tags["palate.items_seq"] == "7"
    assert version.created_s > 1.6e9
    assert store.get(app, 1) == version


def test_versions_are_newest_first_with_their_aliases(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    assert store.versions(app) == []
    for mark in ("a", "b", "c"):
        store.publish(*make_release(tmp_path, app, f"{app}-{mark}"))
    store.set_alias(app, "stable", 2)
    store.set_alias(app, "previous", 2)
    found = store.versions(app)
    assert [v.version for v in found] == [3, 2, 1]
    assert [v.aliases for v in found] == [frozenset(), frozenset({"stable", "previous"}), frozenset()]
    assert found == [store.get(app, v) for v in (3, 2, 1)]


def test_an_alias_moves_and_goes(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    first = store.publish(*make_release(tmp_path, app, f"{app}-1"))
    second = store.publish(*make_release(tmp_path, app, f"{app}-2"))
    store.set_alias(app, "stable", first.version)
    assert store.get(app, "stable").release == first.release
    store.set_alias(app, "stable", second.version)
    assert store.get(app, "stable").release == second.release
    assert store.get(app, first.version).aliases == frozenset()
    store.delete_alias(app, "stable")
    store.delete_alias(app, "stable")  # gone is gone
    with pytest.raises(ReleaseNotFound, match="stable"):
        store.get(app, "stable")


def test_the_aliases_are_read_at_once(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    assert store.aliases(app) == {}
    for mark in ("1", "2"):
        store.publish(*make_release(tmp_path, app, f"{app}-{mark}"))
    assert store.aliases(app) == {}
    store.set_alias(app, "stable", 1)
    store.set_alias(app, "canary", 2)
    assert store.aliases(app) == {"stable": 1, "canary": 2}
    store.delete_alias(app, "canary")
    assert store.aliases(app) == {"stable": 1}


def test_tags_are_added_and_replaced(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    version = store.publish(*make_release(tmp_path, app, app))
    store.set_tags(app, 1, {"palate.rollback": "error rate", "note": "하나"})
    store.set_tags(app, 1, {"note": "둘"})
    assert store.get(app, 1).tags == {**version.tags, "palate.rollback": "error rate", "note": "둘"}


def test_what_is_not_there_is_not_found(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    for ask in (1, "stable"):
        with pytest.raises(ReleaseNotFound, match=app):
            store.get(app, ask)
    release, folders = make_release(tmp_path, app, app)
    store.publish(release, folders)
    for act in (
        lambda: store.get(app, 2),
        lambda: store.get(app, "canary"),
        lambda: store.set_alias(app, "canary", 2),
        lambda: store.set_tags(app, 2, {"a": "b"}),
        lambda: store.delete_alias(f"{app}-x", "canary"),
        lambda: store.fetch(replace(release.components[0], digest="0" * 64), tmp_path / "cache"),
    ):
        with pytest.raises(ReleaseNotFound):
            act()
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_the_same_release_again_is_the_version_there_is(harness: Harness, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    first = harness.store.publish(release, folders)
    harness.store.set_alias(app, "stable", 1)
    again = harness.store.publish(replace(release, metrics={"accuracy": 0.1}), {})
    assert again == replace(first, aliases=frozenset({"stable"}))
    assert len(harness.store.versions(app)) == 1
    assert [harness.copies(c.digest) for c in release.components] == [1, 1, 1]


def test_unchanged_components_are_shared_not_copied(harness: Harness, app: str, tmp_path: Path) -> None:
    one, folders = make_release(tmp_path / "one", app, f"{app}-1")
    harness.store.publish(one, folders)
    two, folders = make_release(tmp_path / "two", app, f"{app}-2")
    other, other_folders = make_release(tmp_path / "three", f"{app}-other", f"{app}-2")
    assert harness.store.publish(two, folders).version == 2
    assert harness.store.publish(other, other_folders).version == 1
    assert {harness.copies(c.digest) for r in (one, two, other) for c in r.components} == {1}


def rename(release: Release, **changes: object) -> Release:
    return replace(release, **changes)  # type: ignore[arg-type]


def with_part(release: Release, name: str, **changes: object) -> Release:
    parts = tuple(replace(c, **changes) if c.name == name else c for c in release.components)  # type: ignore[arg-type]
    return replace(release, components=parts, digest=release_digest(release.spec, parts))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: rename(r, app="No Name"), "not an app name"),
        (lambda r: rename(r, digest="short"), "not a SHA-256"),
        (lambda r: rename(r, components=r.components + r.components[:1]), "more than once"),
        (lambda r: with_part(r, "retrieve.rules", digest="0" * 64), "no folder was given"),
        (lambda r: with_part(r, "retrieve.rules", digest="../../etc"), "not a SHA-256"),
        (lambda r: with_part(r, "retrieve.rules", size_bytes=1), "build the release from the files"),
        (lambda r: with_part(r, "retrieve.rules", needs={"nobody": "0" * 64}), "no component 'nobody'"),
        (lambda r: with_part(r, "index.dense", needs={"retrieve.dense": "0" * 64}), "rebuild index.dense"),
        (lambda r: with_part(r, "index.dense", needs={}), "names no embedder"),
        (lambda r: with_part(r, "index.dense", fingerprint="f2"), "rebuild the index"),
    ],
)
def test_an_unsound_release_is_refused(
    store: ReleaseStore, app: str, tmp_path: Path, spoil: Callable[[Release], Release], says: str
) -> None:
    release, folders = make_release(tmp_path, app, app)
    with pytest.raises(ReleaseRefused, match=says):
        store.publish(spoil(release), folders)
    assert store.versions(app) == []


def test_files_that_changed_since_the_digest_are_refused(harness: Harness, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    (folders[release.components[0].digest] / "rules.json").write_bytes(b"other")
    with pytest.raises(ReleaseRefused, match=r"retrieve\.rules"):
        harness.store.publish(release, folders)
    assert harness.store.versions(app) == []


def test_a_file_name_that_a_url_would_change_is_refused(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    part, folder = component(tmp_path / "rules", "rules", "rules", {"a?b": b"1"})
    release = Release(app, {}, (part,), 0, release_digest({}, (part,)))
    with pytest.raises(ReleaseRefused, match="rename"):
        store.publish(release, {part.digest: folder})


def test_another_release_under_the_same_digest_is_refused(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    store.publish(release, folders)
    with pytest.raises(ReleaseRefused, match="already names another release"):
        store.publish(replace(release, spec={"name": "changed"}), folders)


def test_fetched_files_are_those_published(store: ReleaseStore, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    store.publish(release, folders)
    cache = tmp_path / "cache"
    for part in release.components:
        folder = store.fetch(part, cache)
        assert folder == cache / part.digest
        want = {p.relative_to(folders[part.digest]): p.read_bytes() for p in files_in(folders[part.digest])}
        assert {p.relative_to(folder): p.read_bytes() for p in files_in(folder)} == want
        assert store.fetch(part, cache) == folder


def files_in(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_altered_files_are_refused_and_nothing_is_left(harness: Harness, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    harness.store.publish(release, folders)
    rules = release.component("retrieve.rules")
    harness.damage(rules.digest)
    cache = tmp_path / "cache"
    with pytest.raises(ReleaseRefused, match=r"retrieve\.rules .* altered"):
        harness.store.fetch(rules, cache)
    assert [p.name for p in cache.iterdir()] == [".locks"]


def test_a_damaged_or_partial_copy_on_this_machine_is_fetched_again(harness: Harness, app: str, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, app, app)
    harness.store.publish(release, folders)
    rules = release.component("retrieve.rules")
    cache = tmp_path / "cache"
    (cache / rules.digest).mkdir(parents=True)
    (cache / rules.digest / "rules.json").write_bytes(b"decayed")
    (cache / f".partial-{rules.digest}").mkdir()
    (cache / f".partial-{rules.digest}" / "from-a-killed-process").write_bytes(b"x")
    folder = harness.store.fetch(rules, cache)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"rules.json": app.encode()}
    assert sorted(p.name for p in cache.iterdir()) == sorted([".locks", rules.digest])


def publish_and_fetch(uri: str, folder: Path, app: str, cache: Path, at_once: object, answers: object) -> None:
    store = MlflowStore(uri)
    release, folders = make_release(folder, app, app)
    at_once.wait()  # type: ignore[attr-defined]
    version = store.publish(release, folders)
    answers.put((version.version, str(store.fetch(release.components[0], cache))))  # type: ignore[attr-defined]


def test_publishers_at_the_same_time_end_with_one_version(mlflow_uri: str, app: str, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    at_once, answers = processes.Barrier(3), processes.Queue()
    cache = tmp_path / "cache"
    started = [
        processes.Process(target=publish_and_fetch, args=(mlflow_uri, tmp_path / str(n), app, cache, at_once, answers))
        for n in range(3)
    ]
    for process in started:
        process.start()
    got = {answers.get(timeout=60) for _ in started}
    for process in started:
        process.join()
    versions = MlflowStore(mlflow_uri).versions(app)
    assert len(versions) == 1
    assert {version for version, _ in got} == {versions[0].version}


def test_a_surplus_version_of_a_killed_publisher_is_removed(mlflow_uri: str, app: str, tmp_path: Path) -> None:
    store = MlflowStore(mlflow_uri)
    release, folders = make_release(tmp_path, app, app)
    store.publish(release, folders)
    store._create_version(release)  # what a publisher does that dies before it looks again
    assert len(store.versions(app)) == 2
    assert store.publish(release, folders).version == 1
    assert [v.version for v in store.versions(app)] == [1]


def test_an_altered_release_file_is_refused(mlflow: tuple[MlflowServer, Path], app: str, tmp_path: Path) -> None:
    server, home = mlflow
    release, folders = make_release(tmp_path, app, app)
    MlflowStore(server.uri).publish(release, folders)
    for path in home.glob("mlflow/artifacts/*/*/artifacts/release.json"):
        if app in path.read_text():
            path.write_text(path.read_text().replace('"items_seq": 7', '"items_seq": 8'))
    with pytest.raises(ReleaseRefused, match="altered"):
        MlflowStore(server.uri).get(app, 1)


def test_a_version_that_others_made_is_refused_but_does_not_hide_ours(
    mlflow_uri: str, app: str, tmp_path: Path
) -> None:
    store = MlflowStore(mlflow_uri)
    release, folders = make_release(tmp_path, app, app)
    ours = store.publish(release, folders)
    run = store._client.create_run("0").info
    store._client.create_model_version(app, source=run.artifact_uri, run_id=run.run_id, await_creation_for=0)
    assert store.versions(app) == [ours]
    with pytest.raises(ReleaseRefused, match="not published by Palate"):
        store.get(app, 2)


def test_components_lost_from_the_server_come_back_with_the_next_publish(
    mlflow_uri: str, app: str, tmp_path: Path
) -> None:
    store = MlflowStore(mlflow_uri)
    release, folders = make_release(tmp_path, app, app)
    first = store.publish(release, folders)
    rules = release.component("retrieve.rules")
    for run_id in component_runs(store, rules.digest):
        store._client.delete_run(run_id)
    with pytest.raises(ReleaseNotFound, match="publish it again"):
        store.fetch(rules, tmp_path / "cache")
    assert store.publish(release, folders) == first
    assert store.fetch(rules, tmp_path / "cache").is_dir()
