"""What publishers and readers of releases see when the server or they themselves are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.errors import RegistryError, RegistryUnavailable, ReleaseNotFound
from registry.manifest import release_digest
from registry.mlflow_server import MlflowServer, start_mlflow
from registry.mlflow_store import COMPONENTS_EXPERIMENT, MlflowStore
from registry.net import free_port
from registry.schema import Release
from tests.mlflow_fixture import component, make_release

FILES = 300  # enough that a process can be killed among them

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[MlflowServer]:
    with start_mlflow(home, free_port(), home / "log") as running:
        yield running


def kill(server: MlflowServer) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.process.wait()


def test_a_killed_server_is_unavailable_until_it_is_back(home: Path, tmp_path: Path) -> None:
    port = free_port()
    release, folders = make_release(tmp_path, "wines", "one")
    other, other_folders = make_release(tmp_path, "wines", "two")
    first, second = release.components[:2]
    with start_mlflow(home, port, home / "log") as server:
        store = MlflowStore(server.uri)
        version = store.publish(release, folders)
        fetched = store.fetch(first, tmp_path / "cache")
        kill(server)
    for act in (
        lambda: store.get("wines", 1),
        lambda: store.versions("wines"),
        lambda: store.publish(other, other_folders),
        lambda: store.fetch(second, tmp_path / "cache"),
        lambda: store.set_alias("wines", "stable", 1),
        lambda: store.delete_alias("wines", "stable"),
        lambda: store.set_tags("wines", 1, {"a": "b"}),
    ):
        with pytest.raises(RegistryUnavailable, match=f"127.0.0.1:{port}"):
            act()
    assert MlflowStore(server.uri).fetch(first, tmp_path / "cache") == fetched  # on this disk and sound: no server
    with start_mlflow(home, port, home / "log"):
        assert store.get("wines", 1) == version
        assert store.publish(other, other_folders).version == 2
        assert store.fetch(second, tmp_path / "cache").is_dir()


def test_a_server_that_hangs_is_unavailable(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MlflowStore(server.uri)
    store.publish(*make_release(tmp_path, "hangs", "one"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RegistryUnavailable):
            store.get("hangs", 1)
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def many_files(folder: Path, app: str) -> tuple[Release, dict[str, Path]]:
    files = {f"{app}-{n}.bin": os.urandom(2000) for n in range(FILES)}
    part, at = component(folder, "rules", "rules", files)
    return Release(app, {}, (part,), 0, release_digest({}, (part,))), {part.digest: at}


def publish(uri: str, release: Release, folders: dict[str, Path]) -> None:
    MlflowStore(uri).publish(release, folders)


def fetch(uri: str, release: Release, cache: Path) -> None:
    MlflowStore(uri).fetch(release.components[0], cache)


def run_and_kill_when(started: Callable[[], int], target: Callable[..., None], *args: object) -> None:
    """Run `target` in a process and kill it once some, not all, of its files have arrived."""
    process = spawn.Process(target=target, args=args)
    process.start()
    while not started() > 0:
        assert process.is_alive(), "ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < started() < FILES


def test_a_publisher_killed_in_mid_upload_leaves_nothing_that_is_served(
    server: MlflowServer, home: Path, tmp_path: Path
) -> None:
    release, folders = many_files(tmp_path / "rules", "uploads")
    uploaded = lambda: len(list(home.glob("mlflow/artifacts/*/*/artifacts/uploads-*")))  # noqa: E731
    run_and_kill_when(uploaded, publish, server.uri, release, folders)
    store = MlflowStore(server.uri)
    assert store.versions("uploads") == []
    with pytest.raises(ReleaseNotFound, match="no complete copy"):
        store.fetch(release.components[0], tmp_path / "cache")
    assert store.publish(release, folders).version == 1
    assert len(list(store.fetch(release.components[0], tmp_path / "cache").iterdir())) == FILES


def test_a_reader_killed_in_mid_download_is_not_in_the_way(server: MlflowServer, tmp_path: Path) -> None:
    release, folders = many_files(tmp_path / "rules", "downloads")
    store = MlflowStore(server.uri)
    store.publish(release, folders)
    cache = tmp_path / "cache"
    digest = release.components[0].digest
    run_and_kill_when(lambda: len(list((cache / f".partial-{digest}").glob("*"))), fetch, server.uri, release, cache)
    assert not (cache / digest).exists()
    assert len(list(store.fetch(release.components[0], cache).iterdir())) == FILES
    assert sorted(p.name for p in cache.iterdir()) == sorted([".locks", digest])


def test_a_deleted_experiment_says_how_to_go_on(server: MlflowServer, tmp_path: Path) -> None:
    release, folders = make_release(tmp_path, "deleted", "one")
    store = MlflowStore(server.uri)
    store.publish(release, folders)
    found = store._client.get_experiment_by_name(COMPONENTS_EXPERIMENT)
    store._client.delete_experiment(found.experiment_id)
    try:
        with pytest.raises(RegistryError, match="restore it"):
            store.publish(release, folders)
    finally:
        store._client.restore_experiment(found.experiment_id)
