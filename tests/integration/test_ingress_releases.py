"""Releases change under a running endpoint: the next one takes over unseen, a broken one never serves."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from registry.content import digest_folder
from registry.manifest import release_digest
from registry.memory_store import MemoryStore
from registry.mlflow_store import MlflowStore
from registry.schema import ReleaseVersion
from serving.schema import Item
from tests.endpoint import Endpoint, dense_spec, made_up_spec, publish, serve
from tests.waiting import wait_for


def listed(endpoint: Endpoint, app: str) -> dict[str, object]:
    with endpoint.client() as client:
        apps = client.get("/v1/apps").json()["apps"]
    return next(dict(entry) for entry in apps if entry["name"] == app)


def test_a_new_release_takes_over_without_a_failed_request(fresh_home: tuple[Path, MemoryStore]) -> None:
    home, releases = fresh_home
    answers: list[list[tuple[int, str, str]]] = [[] for _ in range(4)]
    done = threading.Event()

    def ask_on(worker: int, endpoint: Endpoint) -> None:
        with endpoint.client() as client:
            while not done.is_set():
                reply = client.post("/v1/apps/teas/query", json={"query": "red rock kettle", "top_k": 1})
                body = reply.json()
                found = [result["id"] for result in body.get("results", ())]
                answers[worker].append((reply.status_code, body.get("release", "0"), "".join(found)))

    with serve(home, releases, ["teas"]) as endpoint:
        threads = [threading.Thread(target=ask_on, args=(n, endpoint)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: all(answers))
            for number, mark in enumerate(("second", "third", "fourth"), 2):
                publish(home, releases, made_up_spec("teas", description=mark))
                wait_for(lambda n=number: all(line and int(line[-1][1]) in (0, n) for line in answers))  # type: ignore[misc]
        finally:
            done.set()
            for thread in threads:
                thread.join()
    for line in answers:
        assert {(status, item) for status, _, item in line} == {(200, "TEA043")}
        versions = [int(release) for _, release, _ in line]
        assert versions == sorted(versions)
        assert set(versions) == {1, 2, 3, 4}


def test_an_altered_component_is_refused_and_the_old_release_serves_on(fresh_home: tuple[Path, MemoryStore]) -> None:
    home, releases = fresh_home
    with serve(home, releases, ["teas"]) as endpoint:
        another = Item("NEW01", {"en": "Moonlight Creek oolong"})
        version = publish(home, releases, made_up_spec("teas"), [another], stable=False)
        catalogue = version.release.component("catalogue")
        releases.files[catalogue.digest]["documents.bin"] = b"something else"
        releases.set_alias("teas", "stable", version.version)
        wait_for(lambda: "problem" in listed(endpoint, "teas"))
        entry = listed(endpoint, "teas")
        assert (entry["ready"], entry["release"]) == (True, "1")
        assert "release 2" in str(entry["problem"])
        assert endpoint.ids("teas", "red rock kettle")[0] == "TEA043"
        with endpoint.client() as client:
            assert client.get("/readyz").json()["ready"] is True
            text = client.get("/metrics").text
        assert 'palate_release_load_failures_total{app="teas"}' in text


def with_another_fingerprint(releases: MemoryStore, version: ReleaseVersion, scratch: Path) -> ReleaseVersion:
    """The release again, but its index says that another embedder built it, as a hand-made one could."""
    index = version.release.component("retrieve.dense")
    folder = scratch / "index"
    shutil.copytree(releases.fetch(index, scratch / "parts"), folder)
    about = json.loads((folder / "index.json").read_text())
    assert about["embedder_fingerprint"] == index.fingerprint
    (folder / "index.json").write_text(json.dumps({**about, "embedder_fingerprint": "0" * 64}))
    digest, size = digest_folder(folder)
    forged = replace(index, digest=digest, size_bytes=size)
    parts = tuple(forged if c.name == index.name else c for c in version.release.components)
    release = replace(version.release, components=parts, digest=release_digest(version.release.spec, parts))
    return releases.publish(release, {digest: folder})


def test_an_index_of_another_embedder_is_refused_at_load(dense_home: tuple[Path, MemoryStore], tmp_path: Path) -> None:
    home, releases = dense_home
    good = releases.get("dense-teas", "stable")
    # An app of this test's own, of the same components.
    spec = {**dense_spec("switch").model_dump(mode="json")}
    digest = release_digest(spec, good.release.components)
    first = releases.publish(replace(good.release, app="switch", spec=spec, digest=digest), {})
    releases.set_alias("switch", "stable", first.version)
    with serve(home, releases, ["switch"]) as endpoint:
        assert endpoint.ids("switch", "red rock kettle")[0] == "TEA043"
        forged = with_another_fingerprint(releases, first, tmp_path)
        releases.set_alias("switch", "stable", forged.version)
        wait_for(lambda: "problem" in listed(endpoint, "switch"))
        assert "was built by embedder 000000000000" in str(listed(endpoint, "switch")["problem"])
        assert endpoint.release("switch") == "1"
        assert endpoint.ids("switch", "red rock kettle")[0] == "TEA043"
        releases.set_alias("switch", "stable", first.version)
        wait_for(lambda: "problem" not in listed(endpoint, "switch"))


def test_an_app_without_a_release_serves_as_soon_as_it_has_one(tmp_path: Path) -> None:
    releases = MemoryStore()
    with serve(tmp_path, releases, ["teas"]) as endpoint:
        assert listed(endpoint, "teas")["ready"] is False
        publish(tmp_path, releases, made_up_spec("teas"))
        wait_for(lambda: listed(endpoint, "teas")["ready"] is True)
        assert endpoint.ids("teas", "red rock kettle")[0] == "TEA043"


@pytest.mark.slow
def test_releases_come_from_mlflow_too(mlflow_uri: str, tmp_path: Path) -> None:
    releases = MlflowStore(mlflow_uri)
    publish(tmp_path, releases, made_up_spec("mlflow-teas"))
    with serve(tmp_path, releases, ["mlflow-teas"]) as endpoint:
        assert endpoint.ids("mlflow-teas", "은빛 강 홍차")[0] == "TEA011"
        assert endpoint.release("mlflow-teas") == "1"
        publish(tmp_path, releases, made_up_spec("mlflow-teas", description="second"))
        wait_for(lambda: endpoint.release("mlflow-teas") == "2")
        assert endpoint.ids("mlflow-teas", "은빛 강 홍차")[0] == "TEA011"
