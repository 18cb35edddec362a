"""`KubernetesApi` against API servers: the tests' own, called in this process and over HTTP, and a real kube-apiserver
with KServe's CRDs where KUBE_API_URL names one (`kubectl proxy`, or a server that asks for no key).

The first part is what the controller relies on, and holds of each server. The second is how a busy or broken server is
met, which only the tests' own can be made to be.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from registry.errors import ClusterConflict, ClusterRefused, RegistryError, RegistryUnavailable
from registry.kserve_traffic.api import Expired, KubernetesApi, Throttled
from tests.api_server import ApiServer, Fault, Reply, over_http
from tests.kserve_world import WHERE, Kserve, server, service

REAL = os.environ.get("KUBE_API_URL", "")
SERVERS = ["in-process", "http", pytest.param("real", marks=pytest.mark.skipif(not REAL, reason="KUBE_API_URL"))]


class Cluster(NamedTuple):
    api: KubernetesApi
    kserve: Kserve
    server: ApiServer | None


@contextmanager
def cluster_of(kind: str) -> Iterator[Cluster]:
    """With one InferenceService, `wines`."""
    if kind == "real":
        with httpx.Client(base_url=REAL, timeout=30) as client:
            client.delete(f"{WHERE}/wines")
            kserve = Kserve(client)
            kserve.create()
            yield Cluster(KubernetesApi(REAL, WHERE), kserve, None)
            client.delete(f"{WHERE}/wines")
        return
    played = server(token="secret")
    headers = {"authorization": "Bearer secret"}
    if kind == "http":
        with over_http(played) as url, httpx.Client(base_url=url, headers=headers) as client:
            kserve = Kserve(client)
            kserve.create()
            api = KubernetesApi(url, WHERE, token=lambda: "secret")
            yield Cluster(api, kserve, played)
            played.cut_watches()
            api.close()
        return
    with httpx.Client(base_url="http://cluster", transport=played.transport(), headers=headers) as client:
        kserve = Kserve(client)
        kserve.create()
        api = KubernetesApi("http://cluster", WHERE, token=lambda: "secret", transport=played.transport())
        yield Cluster(api, kserve, played)


@pytest.fixture(params=SERVERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster_of(request.param) as found:
        yield found


@pytest.fixture
def http() -> Iterator[Cluster]:
    with cluster_of("http") as found:
        yield found


# --- of every server ---


def test_an_object_is_read_and_replaced(cluster: Cluster) -> None:
    assert cluster.api.get("nothing") is None
    found = cluster.api.get("wines")
    assert found is not None
    assert found["metadata"]["generation"] == 1
    found["spec"]["predictor"]["name"] = "v3"
    written = cluster.api.replace(found)
    assert written["spec"]["predictor"]["name"] == "v3"
    assert written["metadata"]["generation"] == 2
    assert written["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]
    assert any(r["manager"] == "palate-controller" for r in written["metadata"]["managedFields"])
    assert cluster.api.get("wines") == written


def test_who_read_before_another_wrote_is_refused(cluster: Cluster) -> None:
    first, second = cluster.api.get("wines"), cluster.api.get("wines")
    assert first is not None
    assert second is not None
    first["spec"]["predictor"]["minReplicas"] = 3
    cluster.api.replace(first)
    second["spec"]["predictor"]["minReplicas"] = 4
    with pytest.raises(ClusterConflict, match="modified"):
        cluster.api.replace(second)
    now = cluster.api.get("wines")
    assert now is not None
    assert now["spec"]["predictor"]["minReplicas"] == 3


def test_what_is_gone_is_not_written_back(cluster: Cluster) -> None:
    found = cluster.api.get("wines")
    assert found is not None
    assert cluster.kserve.client.delete(f"{WHERE}/wines").status_code == 200
    with pytest.raises(ClusterConflict):
        cluster.api.replace(found)


def test_the_status_is_not_ours_to_write(cluster: Cluster) -> None:
    cluster.kserve.step()
    found = cluster.api.get("wines")
    assert found is not None
    assert found["status"]["conditions"]
    found["status"] = {"conditions": []}
    assert cluster.api.replace(found)["status"]["conditions"]


def test_a_write_that_changes_nothing_is_no_event(cluster: Cluster) -> None:
    found = cluster.api.get("wines")
    assert found is not None
    assert cluster.api.replace(found)["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]


def test_what_the_schema_refuses(cluster: Cluster) -> None:
    found = cluster.api.get("wines")
    assert found is not None
    model = {**service("x")["spec"]["predictor"]["model"], "name": "kserve-container"}
    found["spec"]["canary"] = [{"predictor": {"name": "v4", "model": model}, "trafficPercent": 101}]
    with pytest.raises(ClusterRefused, match="101"):
        cluster.api.replace(found)


def test_a_watch_tells_what_happened_since(cluster: Cluster) -> None:
    objects, version = cluster.api.list()
    assert [found["metadata"]["name"] for found in objects] == ["wines"]
    cluster.kserve.edit(lambda spec: spec["predictor"].update(minReplicas=3))
    cluster.kserve.edit(lambda spec: spec["predictor"].update(minReplicas=4))
    with cluster.api.watch(version, 2) as events:
        kept = [(event.kind, event.object) for event in events if event.kind != "BOOKMARK"]
    assert [(kind, found["spec"]["predictor"]["minReplicas"]) for kind, found in kept] == [
        ("MODIFIED", 3),
        ("MODIFIED", 4),
    ]


def test_a_watch_ends_by_itself_and_goes_on_from_its_last_event(cluster: Cluster) -> None:
    _, version = cluster.api.list()
    with cluster.api.watch(version, 1) as events:
        last = [event.version for event in events][-1:] or [version]
    cluster.kserve.edit(lambda spec: spec["predictor"].update(minReplicas=5))
    with cluster.api.watch(last[0], 1) as events:
        assert [event.kind for event in events if event.kind != "BOOKMARK"] == ["MODIFIED"]


def test_a_kind_that_is_not_installed(cluster: Cluster) -> None:
    elsewhere = KubernetesApi("http://cluster", WHERE.replace("inferenceservices", "nothings"),
                              transport=cluster.server.transport()) if cluster.server else KubernetesApi(
                                  REAL, WHERE.replace("inferenceservices", "nothings"))  # fmt: skip
    with pytest.raises(ClusterRefused):
        elsewhere.list()


# --- of one that is busy, broken or away ---


def busy(code: int, **headers: str) -> Fault:
    return Fault(Reply(code, {"kind": "Status", "message": "busy", "code": code}, headers))


def test_a_busy_server_says_when_to_come_again(http: Cluster) -> None:
    assert http.server is not None
    http.server.faults.append(busy(429, **{"retry-after": "7"}))
    with pytest.raises(Throttled, match="busy") as raised:
        http.api.get("wines")
    assert raised.value.retry_after_s == 7
    assert len(http.server.requests) == 2, "it is not asked again by itself"
    http.server.faults.append(busy(503))
    with pytest.raises(RegistryUnavailable):
        http.api.list()


def test_an_answer_that_is_lost_after_the_write(http: Cluster) -> None:
    assert http.server is not None
    found = http.api.get("wines")
    assert found is not None
    found["spec"]["predictor"]["name"] = "v3"
    http.server.faults.append(Fault(lost=True))
    with pytest.raises(RegistryUnavailable):
        http.api.replace(found)
    assert http.kserve.split() == {"v3": 100}
    with pytest.raises(ClusterConflict):  # so the next pass reads, and finds it done
        http.api.replace(found)


def test_a_server_that_hangs() -> None:
    played = server()
    with over_http(played) as url:
        api = KubernetesApi(url, WHERE)
        api._client.timeout = httpx.Timeout(0.2)
        played.faults.append(Fault(wait_s=1.0))
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            api.list()


def test_a_server_that_is_away() -> None:
    with pytest.raises(RegistryUnavailable):
        KubernetesApi("http://127.0.0.1:9", WHERE).list()


def test_what_is_no_answer_of_an_api_server(http: Cluster) -> None:
    assert http.server is not None
    http.server.faults.append(Fault(Reply(200, iter([b"<html>welcome"]))))
    with pytest.raises(RegistryUnavailable, match="no JSON"):
        http.api.list()


def test_a_key_that_is_not_known(http: Cluster) -> None:
    stranger = KubernetesApi(str(http.api._client.base_url), WHERE, token=lambda: "other")
    with pytest.raises(ClusterRefused, match="401"):
        stranger.list()


def test_history_that_is_forgotten(http: Cluster) -> None:
    assert http.server is not None
    _, version = http.api.list()
    http.kserve.edit(lambda spec: spec["predictor"].update(minReplicas=3))
    http.server.forget()
    with pytest.raises(Expired), http.api.watch(version, 5) as events:
        list(events)


def test_a_watch_that_is_cut_within_a_line(http: Cluster) -> None:
    assert http.server is not None
    _, version = http.api.list()
    found: list[RegistryError] = []

    def watch() -> None:
        try:
            with http.api.watch(version, 30) as events:
                list(events)
        except RegistryError as error:
            found.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    http.server.wait_for_watch()
    began = time.monotonic()
    http.server.cut_watches()
    thread.join(25)
    assert isinstance(found[0], RegistryUnavailable)
    assert time.monotonic() - began < 25, "it did not wait for the watch's own end"


def test_bookmarks_move_the_place_to_go_on_from(http: Cluster) -> None:
    _, version = http.api.list()
    other = service("teas")
    http.kserve.client.post(WHERE, json=other)
    with http.api.watch(version, 2) as events:
        seen = [(event.kind, event.version) for event in events]
    assert seen[-1][0] == "BOOKMARK"
    assert int(seen[-1][1]) > int(version)


def test_unknown_fields_are_refused_and_not_dropped(http: Cluster) -> None:
    found = http.api.get("wines")
    assert found is not None
    found["spec"]["canaries"] = []
    with pytest.raises(ClusterRefused, match=r"spec\.canaries"):
        http.api.replace(found)


def test_a_pod_finds_its_api_server(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="KUBERNETES_SERVICE_HOST"):
        KubernetesApi.in_cluster(WHERE, {}, tmp_path)
    import certifi

    (tmp_path / "ca.crt").write_text(Path(certifi.where()).read_text("utf-8"), "utf-8")
    (tmp_path / "token").write_text("first\n")
    found = KubernetesApi.in_cluster(
        WHERE, {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path
    )
    assert str(found._client.base_url) == "https://[fd00::1]:6443"
    assert found._headers() == {"authorization": "Bearer first"}
    (tmp_path / "token").write_text("second")  # kubelet renews it
    assert found._headers() == {"authorization": "Bearer second"}
    (tmp_path / "token").unlink()
    with pytest.raises(RegistryUnavailable, match="token"):
        found.list()


def test_the_official_client_agrees(http: Cluster) -> None:
    """What the tests' server says is understood by a client that was not written for it."""
    import kubernetes

    configuration = kubernetes.client.Configuration(host=str(http.api._client.base_url))
    configuration.api_key = {"authorization": "Bearer secret"}
    with kubernetes.client.ApiClient(configuration) as client:
        objects = kubernetes.client.CustomObjectsApi(client)
        where = ("serving.kserve.io", "v1beta1", "palate", "inferenceservices")
        found = objects.get_namespaced_custom_object(*where, "wines")
        found["spec"]["predictor"]["minReplicas"] = 4
        objects.replace_namespaced_custom_object(*where, "wines", found)
        with pytest.raises(kubernetes.client.ApiException) as raised:
            objects.replace_namespaced_custom_object(*where, "wines", found)
        assert raised.value.status == 409
        patch = {"spec": {"predictor": {"minReplicas": None}}}
        assert "minReplicas" not in objects.patch_namespaced_custom_object(*where, "wines", patch)["spec"]["predictor"]
        listed = objects.list_namespaced_custom_object(*where)
        watch = kubernetes.watch.Watch()
        since = str(int(listed["metadata"]["resourceVersion"]) - 2)
        seen = watch.stream(objects.list_namespaced_custom_object, *where, resource_version=since, timeout_seconds=1)
        assert [event["type"] for event in seen] == ["MODIFIED", "MODIFIED"]
