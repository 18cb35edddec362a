"""Queries with a record, and queries by what is liked, over real HTTP and an encoder that reads records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from registry.memory_store import MemoryStore
from tests.endpoint import Endpoint, made_up_spec, publish, serve
from tests.problem import assert_problem
from tests.tiny_taste import APP, items, make_app_folder, spec
from tests.waiting import wait_for

QUERY = f"/v1/apps/{APP}/query"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    home = make_app_folder(tmp_path_factory.mktemp("records"))
    releases = MemoryStore()
    publish(home, releases, spec(), items())
    publish(home, releases, made_up_spec("teas"))
    with serve(home, releases, [APP, "teas"]) as running:
        wait_for(lambda: running.release(APP) and running.release("teas"))
        yield running


def ask(endpoint: Endpoint, body: dict[str, Any], path: str = QUERY) -> httpx.Response:
    with endpoint.client() as client:
        return client.post(path, json=body)


def results(endpoint: Endpoint, **body: Any) -> list[tuple[str, float]]:
    answer = ask(endpoint, body)
    assert answer.status_code == 200, answer.text
    return [(one["id"], one["score"]) for one in answer.json()["results"]]


def test_a_record_changes_what_is_found_and_caches_do_not_mix(endpoint: Endpoint) -> None:
    records: list[dict[str, Any]] = [{}, {"metrics": {"gloss": 8}}, {"metrics": {"gloss": 1, "weight": 80}},
                                     {"context": [{"hour": 8, "place": "shop"}]}]  # fmt: skip
    first = [results(endpoint, query="red wine", record=record) for record in records]
    assert len({str(one) for one in first}) == len(records)
    assert [results(endpoint, query="red wine", record=record) for record in records] == first


def test_an_items_own_text_and_record_find_it(endpoint: Endpoint) -> None:
    item = items()[20]
    found = results(endpoint, query=item.fields["name"], record=item.fields["record"], top_k=1)
    assert found == [(item.id, pytest.approx(1, abs=0.001))]


def test_a_record_needs_no_text(endpoint: Endpoint) -> None:
    assert len(results(endpoint, record={"metrics": {"gloss": 3}}, top_k=5)) == 5


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": "red", "record": {"metrics": {"glos": 1}}}, "record.metrics.glos"),
        ({"query": "red", "record": {"metrics": {"gloss": 11}}}, "record.metrics.gloss"),
        ({"query": "red", "record": {"context": [{"hour": "noon"}]}}, "record.context.0.hour"),
        ({"query": "red", "record": [1]}, "record"),
        ({"query": " ", "record": {}}, "query"),
        ({"like": [7]}, "like.0"),
        ({"like": ["a"] * 101}, "like"),
    ],
)
def test_faults_name_the_field(endpoint: Endpoint, body: dict[str, Any], field: str) -> None:
    assert_problem(ask(endpoint, body), 400, field=field)


def test_several_texts_have_no_record(endpoint: Endpoint) -> None:
    answer = ask(endpoint, {"queries": ["a"], "like": ["P00"]})
    assert answer.status_code == 400
    assert "not with `queries`" in answer.json()["detail"]


def test_an_app_without_records_or_vectors_says_so(endpoint: Endpoint) -> None:
    path = "/v1/apps/teas/query"
    assert_problem(ask(endpoint, {"query": "a", "record": {"metrics": {}}}, path), 400, field="record")
    assert_problem(ask(endpoint, {"like": ["TEA000"]}, path), 400, field="like")


def test_like_this_one_leaves_it_out(endpoint: Endpoint) -> None:
    alike = results(endpoint, like=["P33"], top_k=64)
    assert len(alike) == 63
    assert "P33" not in dict(alike)
    # A neighbour of an item is one whose neighbour it is.
    back = dict(results(endpoint, like=[alike[0][0]], top_k=64))
    assert back["P33"] == pytest.approx(alike[0][1], abs=1e-3)


def test_several_liked_items_are_met_in_the_middle(endpoint: Endpoint) -> None:
    one, two = dict(results(endpoint, like=["P00"], top_k=64)), dict(results(endpoint, like=["P77"], top_k=64))
    both = results(endpoint, like=["P00", "P77", "no such item"], top_k=64)
    assert {"P00", "P77"}.isdisjoint(dict(both))
    best, worst = both[0][0], both[-1][0]
    assert one[best] + two[best] > one[worst] + two[worst]


def test_text_and_likes_count_together_and_filters_hold(endpoint: Endpoint) -> None:
    by_text = results(endpoint, query="dark paper", top_k=3)
    by_both = results(endpoint, query="dark paper", like=["P00"], top_k=3)
    assert by_both != by_text
    found = results(endpoint, like=["P33"], filters={"colour": "red"}, top_k=64)
    assert len(found) == 8
    assert all(name.startswith("P0") for name, _ in found)


def test_likes_that_are_gone_find_nothing(endpoint: Endpoint) -> None:
    answer = ask(endpoint, {"like": ["gone"]}).json()
    assert (answer["results"], answer["abstained"]) == ([], True)


def test_a_changed_item_is_liked_as_it_is_now(endpoint: Endpoint) -> None:
    new = {"id": "NEW", "fields": {"name": "red wine", "record": items()[0].fields["record"]}, "attributes": {}}
    with endpoint.client() as client:
        assert client.put(f"/v1/apps/{APP}/items", json={"items": [new]}).status_code == 200
        wait_for(lambda: "NEW" in dict(results(endpoint, like=["P00"], top_k=64)))
        assert results(endpoint, like=["NEW"], top_k=1) == [("P00", pytest.approx(1, abs=1e-3))]
        client.request("DELETE", f"/v1/apps/{APP}/items", json={"ids": ["NEW"]})
        wait_for(lambda: not results(endpoint, like=["NEW"], top_k=1))


def test_the_trace_keeps_record_and_likes(endpoint: Endpoint) -> None:
    record = {"metrics": {"gloss": 4}}
    with_both = ask(endpoint, {"query": "red", "record": record, "like": ["P00"]}).json()["trace_id"]
    plain = ask(endpoint, {"query": "red"}).json()["trace_id"]
    feedback = endpoint.stores.feedback
    wait_for(lambda: feedback.trace(with_both) and feedback.trace(plain))
    kept, other = feedback.trace(with_both), feedback.trace(plain)
    assert kept is not None
    assert other is not None
    assert (kept.lines[0]["record"], list(kept.lines[0]["like"])) == (record, ["P00"])
    assert not {"record", "like"} & set(other.lines[0])
