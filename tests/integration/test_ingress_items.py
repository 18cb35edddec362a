"""The catalogue over HTTP: written durably, paged, seen by queries within seconds and after a restart."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.memory_store import MemoryStore
from tests.endpoint import Endpoint, made_up_items, serve
from tests.problem import assert_problem
from tests.waiting import wait_for

ITEMS = "/v1/apps/teas/items"


def item(item_id: str, ko: str, en: str, **attributes: Any) -> dict[str, Any]:
    return {"id": item_id, "fields": {"ko": ko, "en": en}, "attributes": attributes}


def put(endpoint: Endpoint, *items: Any) -> httpx.Response:
    with endpoint.client() as client:
        return client.put(ITEMS, json={"items": list(items)})


def delete(endpoint: Endpoint, *ids: str) -> httpx.Response:
    with endpoint.client() as client:
        return client.request("DELETE", ITEMS, json={"ids": list(ids)})


def page_through(endpoint: Endpoint, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    with endpoint.client() as client:
        while True:
            page = client.get(ITEMS, params={"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
            assert set(page) == {"items", "next_cursor"}
            assert len(page["items"]) <= limit
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
def test_paging_gives_every_item_once_in_order(shared_endpoint: Endpoint, limit: int) -> None:
    found = page_through(shared_endpoint, limit)
    assert [i["id"] for i in found] == sorted(i.id for i in made_up_items())
    assert found[0] == item("TEA000", "푸른 언덕 녹차", "Blue Hill green tea", category="tea", price=9000, organic=True)


def test_some_items_by_id(shared_endpoint: Endpoint) -> None:
    with shared_endpoint.client() as client:
        page = client.get(ITEMS, params={"id": ["TEA011", "nothing", "TEA000"]}).json()
    assert [i["id"] for i in page["items"]] == ["TEA011", "TEA000"]
    assert page["next_cursor"] is None


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "ten"},
        {"limit": ""},
        {"limit": "1.0"},
        {"limit": "²"},
        {"limit": "٣x"},
        {"limit": "9" * 5000},
        {"cursor": "made up"},
        {"cursor": "\u00e9"},
        {"cursor": "////"},
    ],
)
def test_a_bad_page_is_refused(shared_endpoint: Endpoint, params: dict[str, str]) -> None:
    with shared_endpoint.client() as client:
        assert_problem(client.get(ITEMS, params=params), 400, field=next(iter(params)))


def test_a_new_item_is_found_changed_and_gone(endpoint: Endpoint) -> None:
    reply = put(endpoint, item("NEW01", "달빛 계곡 우롱차", "Moonlight Creek oolong", category="tea", price=70_000))
    assert reply.status_code == 200
    assert reply.json()["upserted"] == 1
    wait_for(lambda: endpoint.ids("teas", "moonlight creek oolong")[:1] == ["NEW01"], 5)
    assert endpoint.ids("teas", "달빛 계곡 우롱차")[:1] == ["NEW01"]
    expensive = {"price": {"gt": 60_000}}
    assert endpoint.ids("teas", "moonlight creek oolong", filters=expensive) == ["NEW01"]

    put(
        endpoint, item("NEW01", "보랏빛 사막 우롱차", "Purple Desert oolong", category="tea", price=5_000, organic=True)
    )
    cheap = {"price": 5_000, "organic": True}
    wait_for(lambda: endpoint.ids("teas", "purple desert oolong", filters=cheap) == ["NEW01"], 5)
    assert endpoint.ids("teas", "purple desert oolong")[0] == "NEW01"
    assert endpoint.ids("teas", "purple desert oolong", filters=expensive) == []
    with endpoint.client() as client:
        [stored] = client.get(ITEMS, params={"id": "NEW01"}).json()["items"]
        answer = client.post("/v1/apps/teas/query", json={"query": "purple desert oolong"}).json()
    assert (
        stored["fields"] == answer["results"][0]["fields"] == {"ko": "보랏빛 사막 우롱차", "en": "Purple Desert oolong"}
    )

    assert delete(endpoint, "NEW01", "never was").status_code == 200
    wait_for(lambda: "NEW01" not in endpoint.ids("teas", "purple desert oolong"), 5)
    with endpoint.client() as client:
        assert client.get(ITEMS, params={"id": "NEW01"}).json()["items"] == []
    assert len(page_through(endpoint, 1000)) == 60


def test_an_item_of_the_release_can_change_and_go_too(endpoint: Endpoint) -> None:
    assert endpoint.ids("teas", "blue hill teacup")[0] == "TEA004"
    with endpoint.client() as client:
        assert client.delete(ITEMS, params={"id": ["TEA004", "TEA003"]}).status_code == 200
    wait_for(lambda: not {"TEA003", "TEA004"} & set(endpoint.ids("teas", "blue hill teacup", top_k=100)), 5)
    put(endpoint, item("TEA000", "푸른 언덕 말차", "Blue Hill matcha", category="tea"))
    wait_for(lambda: endpoint.ids("teas", "blue hill matcha")[0] == "TEA000", 5)


def test_changes_survive_a_restart_on_an_old_release(fresh_home: tuple[Path, MemoryStore]) -> None:
    with serve(*fresh_home, apps=["teas"]) as first:
        put(first, item("NEW01", "달빛 계곡 우롱차", "Moonlight Creek oolong", category="tea"))
        delete(first, "TEA043")
    with serve(*fresh_home, apps=["teas"]) as second:
        assert second.ids("teas", "moonlight creek oolong")[0] == "NEW01"
        assert "TEA043" not in second.ids("teas", "red rock kettle")
        assert second.release("teas") == "1"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (item("X", "가", "a", colour="red"), "attributes.colour"),
        (item("X", "가", "a", price="cheap"), "attributes.price"),
        (item("X", "가", "a", price=True), "attributes.price"),
        (item("X", "가", "a", organic="yes"), "attributes.organic"),
        (item("X", "가", "a", category=7), "attributes.category"),
        (item("X", " ", ""), "fields"),
        (item("a\nb", "가", "a"), "id"),
        (item("a\u0000b", "가", "a"), "id"),
        ({"id": "X", "fields": {"ko": "가", "size": 2**70}}, "fields"),
        ({"id": "", "fields": {"ko": "가"}}, "items.1.id"),
        ({"id": 7, "fields": {"ko": "가"}}, "items.1.id"),
        ({"id": "X"}, "items.1.fields"),
        ({"id": "X", "fields": ["가"]}, "items.1.fields"),
        ({"id": "X", "fields": {"ko": "가"}, "tags": []}, "items.1.tags"),
        ("X", "items.1"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_bad_item_is_named_and_nothing_is_written(shared_endpoint: Endpoint, bad: Any, field: str) -> None:
    good = item("GOOD1", "좋은 차", "good tea")
    assert_problem(put(shared_endpoint, good, bad), 400, field=field)
    with shared_endpoint.client() as client:
        assert client.get(ITEMS, params={"id": "GOOD1"}).json()["items"] == []


def test_too_many_items_at_once(shared_endpoint: Endpoint) -> None:
    many = [item(f"M{n}", "차", "tea") for n in range(1001)]
    assert_problem(put(shared_endpoint, *many), 413, field="items")
    assert_problem(delete(shared_endpoint, *(f"M{n}" for n in range(1001))), 413, field="ids")
    with shared_endpoint.client() as client:
        assert_problem(client.get(ITEMS, params={"id": [f"{n}" for n in range(1001)]}), 413, field="id")
    for bad in ({}, {"items": []}, {"ids": ["a"]}, [], None):
        with shared_endpoint.client() as client:
            assert_problem(client.put(ITEMS, json=bad), 400)
    assert_problem(delete(shared_endpoint), 400, field="ids")
    with shared_endpoint.client() as client:
        assert_problem(client.delete(ITEMS), 400)


def test_two_clients_writing_at_once_lose_nothing(endpoint: Endpoint) -> None:
    statuses: list[int] = []

    def write(writer: int) -> None:
        for n in range(10):
            items = [item(f"W{writer}-{n}-{k}", "공동 차", "shared tea", price=n) for k in range(5)]
            reply = put(endpoint, *items, item("SHARED", "공동 차", f"shared tea {writer} {n}"))
            statuses.append(reply.status_code)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 20
    ids = [i["id"] for i in page_through(endpoint, 1000)]
    assert len(ids) == len(set(ids)) == 60 + 2 * 10 * 5 + 1
    wait_for(lambda: len(endpoint.ids("teas", "공동 차", top_k=100, filters={"price": 9})) == 10, 5)


def test_items_of_one_app_are_no_others(endpoint: Endpoint) -> None:
    put(endpoint, item("NEW01", "달빛 계곡 우롱차", "Moonlight Creek oolong"))
    wait_for(lambda: endpoint.ids("teas", "moonlight creek oolong")[:1] == ["NEW01"], 5)
    assert "NEW01" not in endpoint.ids("tea-orders", "moonlight creek oolong")
    with endpoint.client() as client:
        assert_problem(client.get("/v1/apps/not-ready/items"), 503)
        assert_problem(client.get("/v1/apps/nothing/items"), 404, field="app")
