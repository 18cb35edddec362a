"""Followers: every change is applied, in order, once; one that cannot be does not hold up the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from serving import items
from serving.errors import BadRequest, PhaseFailed, StoreUnavailable
from serving.fakes import MemoryItemStore
from serving.items import PAGE, Followers, ItemFollower
from serving.schema import Item
from tests.waiting import wait_for


class Release:
    """Stands in for a release: takes changes whole or not at all, and refuses those of `poisoned` items."""

    def __init__(self, poisoned: Sequence[str] = (), error: Callable[[str], Exception] = BadRequest) -> None:
        self.poisoned = set(poisoned)
        self.error = error
        self.items: dict[str, Item] = {}
        self.calls = 0

    def apply(self, upserts: Sequence[Item], deletes: Sequence[str]) -> None:
        self.calls += 1
        for item_id in [*(item.id for item in upserts), *deletes]:
            if item_id in self.poisoned:
                raise self.error(item_id)
        self.items |= {item.id: item for item in upserts}
        for item_id in deletes:
            self.items.pop(item_id, None)


def made_up(count: int, text: str = "x") -> list[Item]:
    return [Item(f"i{n:04}", {"en": f"{text} {n}"}) for n in range(count)]


@pytest.mark.parametrize("error", [BadRequest, ValueError, KeyError])
def test_an_item_that_cannot_be_applied_is_left_out_and_the_rest_goes_on(error: Callable[[str], Exception]) -> None:
    store, release = MemoryItemStore(), Release(["i0003", "i0500"], error)
    follower = ItemFollower(store, "a", 0, release.apply)
    skipped = items.metrics.ITEMS_SKIPPED.labels("a")
    before = skipped._value.get()
    store.upsert("a", made_up(PAGE + 20))
    assert follower.catch_up() == PAGE + 20
    assert set(release.items) == {item.id for item in made_up(PAGE + 20)} - release.poisoned
    assert skipped._value.get() - before == 2
    assert follower.seq == store.sequence("a")
    store.upsert("a", [Item("i0003", {"en": "again"}), Item("new", {"en": "new"})])
    store.delete("a", ["i0001", "i0500"])
    follower.catch_up()
    assert "i0001" not in release.items
    assert release.items["new"] == Item("new", {"en": "new"})
    calls = release.calls
    assert follower.catch_up() == 0
    assert release.calls == calls


def test_what_is_not_the_fault_of_an_item_is_tried_again() -> None:
    store, release = (
        MemoryItemStore(),
        Release(["i0003"], lambda _: PhaseFailed("the embedder restarts", phase="embed")),
    )
    follower = ItemFollower(store, "a", 0, release.apply)
    store.upsert("a", made_up(10))
    for _ in range(2):
        with pytest.raises(PhaseFailed):
            follower.catch_up()
    assert (follower.seq, release.calls) == (0, 2)
    release.poisoned.clear()
    follower.catch_up()
    assert len(release.items) == 10


class Away:
    """A follower whose store is away."""

    def catch_up(self) -> int:
        raise StoreUnavailable("away")


def test_a_follower_that_fails_does_not_stop_the_others() -> None:
    store, release = MemoryItemStore(), Release()
    store.upsert("a", made_up(3))
    followers = Followers("a", [Away(), ItemFollower(store, "a", 0, release.apply)], 0.01)  # type: ignore[list-item]
    followers.start()
    try:
        assert len(release.items) == 3
        store.upsert("a", made_up(4))
        wait_for(lambda: len(release.items) == 4)
    finally:
        followers.close()
