"""What every ItemStore does: the SQL one on SQLite and PostgreSQL, and its stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.database import migrate, open_database
from serving.errors import BadRequest
from serving.fakes import MemoryItemStore
from serving.ports import ItemStore
from serving.schema import Item
from serving.store import SqlItemStore


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ItemStore]:
    if request.param == "memory":
        yield MemoryItemStore()
        return
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database = open_database(url)
    yield SqlItemStore(database)
    database.close()


def item(item_id: str, name: str = "name", **attributes: object) -> Item:
    return Item(item_id, {"name": name}, attributes)


def follow(store: ItemStore, app: str, after: int, limit: int) -> tuple[dict[str, Item | None], int]:
    """What a follower that pages through the changes ends up with."""
    seen: dict[str, Item | None] = {}
    while True:
        upserted, deleted, seq = store.changes(app, after, limit)
        assert len(upserted) + len(deleted) <= limit
        if seq == after:
            return seen, after
        seen.update((i.id, i) for i in upserted)
        seen.update(dict.fromkeys(deleted))
        after = seq


def test_an_app_without_items(store: ItemStore) -> None:
    assert store.sequence("a") == 0
    assert store.count("a") == 0
    assert store.page("a", 5, None) == ([], None)
    assert store.changes("a", 0, 5) == ([], [], 0)
    assert list(store.scan("a")) == []
    assert store.get("a", ["x"]) == [None]


def test_keeps_items_as_they_were(store: ItemStore) -> None:
    made = Item("3A24401", {"name_ko": "레이크 찰리스", "n": 1.5, "tags": ["a", None], "z": {"y": True}}, {"price": 3})
    store.upsert("a", [made, item("b")])
    assert store.get("a", ["b", "none", "3A24401", "b"]) == [item("b"), None, made, item("b")]
    assert list(store.get("a", ["3A24401"])[0].fields) == ["name_ko", "n", "tags", "z"]  # type: ignore[union-attr]


def test_the_last_of_one_id_wins(store: ItemStore) -> None:
    store.upsert("a", [item("x", "old"), item("x", "new")])
    assert store.get("a", ["x"]) == [item("x", "new")]
    assert store.count("a") == 1


def test_apps_do_not_see_each_other(store: ItemStore) -> None:
    store.upsert("a", [item("x"), item("y")])
    store.upsert("b", [item("x", "other")])
    store.delete("a", ["x"])
    assert store.get("b", ["x"]) == [item("x", "other")]
    assert (store.sequence("a"), store.sequence("b")) == (3, 1)
    assert (store.count("a"), store.count("b")) == (1, 1)


def test_writing_the_same_again_is_no_change(store: ItemStore) -> None:
    first = store.upsert("a", [item("x"), item("y")])
    assert store.upsert("a", [item("y"), item("x")]) == first
    assert store.delete("a", ["none"]) == first
    gone = store.delete("a", ["x"])
    assert gone > first
    assert store.delete("a", ["x"]) == gone
    assert store.sequence("a") == gone


def test_only_what_differs_takes_a_number(store: ItemStore) -> None:
    first = store.upsert("a", [item("x"), item("y"), item("z")])
    store.upsert("a", [item("x"), item("y", "new"), item("z")])
    assert store.changes("a", first, 10) == ([item("y", "new")], [], first + 1)
    second = store.upsert("a", [item("x", price=1)])
    assert store.changes("a", first + 1, 10) == ([item("x", price=1)], [], second)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_follower_ends_with_every_final_value(store: ItemStore, limit: int) -> None:
    store.upsert("a", [item(f"i{n}") for n in range(7)])
    _, after = follow(store, "a", 0, limit)
    store.delete("a", ["i1", "i2"])
    store.upsert("a", [item("i2", "again"), item("i0", "new"), item("i9")])
    seen, last = follow(store, "a", after, limit)
    assert seen == {"i1": None, "i2": item("i2", "again"), "i0": item("i0", "new"), "i9": item("i9")}
    assert last == store.sequence("a")
    everything, _ = follow(store, "a", 0, limit)
    assert sorted(i for i, value in everything.items() if value) == [i.id for i in store.scan("a")]


def test_an_item_comes_back_after_its_deletion(store: ItemStore) -> None:
    store.upsert("a", [item("x")])
    store.delete("a", ["x"])
    assert store.get("a", ["x"]) == [None]
    assert store.count("a") == 0
    seq = store.upsert("a", [item("x")])
    assert store.changes("a", seq - 1, 5) == ([item("x")], [], seq)
    assert store.count("a") == 1


def test_pages_follow_code_points(store: ItemStore) -> None:
    ids = ["B", "a", "_", "Z1", "가", "é", "😀", "a-b", "a b", "10", "9"]
    store.upsert("a", [item(i) for i in [*ids, "gone"]])
    store.delete("a", ["gone"])
    paged: list[str] = []
    cursor = None
    while True:
        items, cursor = store.page("a", 2, cursor)
        paged += [i.id for i in items]
        if cursor is None:
            break
        assert len(items) == 2
    assert paged == sorted(ids) == [i.id for i in store.scan("a")]


def test_a_full_last_page_has_no_cursor(store: ItemStore) -> None:
    store.upsert("a", [item("x"), item("y")])
    assert store.page("a", 2, None) == ([item("x"), item("y")], None)


@pytest.mark.parametrize("cursor", ["", "x", "!!", "eA", "가", "YWZ0ZXI6_w"])
def test_refuses_a_cursor_no_page_returned(store: ItemStore, cursor: str) -> None:
    with pytest.raises(BadRequest) as refused:
        store.page("a", 5, cursor)
    assert refused.value.field == "cursor"


def test_refuses_a_limit_below_one(store: ItemStore) -> None:
    for call in (lambda: store.page("a", 0, None), lambda: store.changes("a", 0, -1)):
        with pytest.raises(BadRequest) as refused:
            call()
        assert refused.value.field == "limit"


@pytest.mark.parametrize("bad", ["", "a\nb", "a\0b", "x" * 257, "\ud800", "a\u2028b"])
def test_refuses_an_id_that_is_not_one_visible_line(store: ItemStore, bad: str) -> None:
    with pytest.raises(BadRequest) as refused:
        store.upsert("a", [item("good"), item(bad)])
    assert refused.value.field == "id"
    assert store.count("a") == 0


def test_refuses_values_that_are_not_json(store: ItemStore) -> None:
    with pytest.raises(BadRequest) as refused:
        store.upsert("a", [item("good"), Item("x", {"name": {1, 2}})])
    assert refused.value.field == "fields"
    assert "'x'" in refused.value.detail
    assert store.count("a") == 0


def test_a_write_of_many_items_is_whole(store: ItemStore) -> None:
    many = [item(f"i{n:05}") for n in range(4500)]
    assert store.upsert("a", many) == 4500
    assert store.count("a") == 4500
    assert [i.id for i in store.scan("a")] == [i.id for i in many]
    store.delete("a", [i.id for i in many[1:]])
    assert list(store.scan("a")) == many[:1]
    assert store.count("a") == 1
