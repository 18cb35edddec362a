"""The SQL item store against a plain dictionary, under generated writes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from registry.database import migrate, open_database
from serving.schema import Item
from serving.store import SqlItemStore

IDS = st.sampled_from(["a", "b", "B", "가", "c d", "😀"])
ITEMS = st.builds(
    Item,
    IDS,
    st.fixed_dictionaries({"name": st.sampled_from(["x", "y"])}),
    st.dictionaries(st.just("n"), st.integers(0, 1)),
)


class ItemStoreMachine(RuleBasedStateMachine):
    """`known` is what the store should hold, `followed` what a follower that polls now and then has."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        url = f"sqlite:///{Path(self.folder.name) / 'p.db'}"
        migrate(url)
        self.database = open_database(url)
        self.store = SqlItemStore(self.database)
        self.known: dict[str, Item] = {}
        self.followed: dict[str, Item] = {}
        self.after = 0
        self.last = 0

    def teardown(self) -> None:
        self.follow(limit=3)
        while self.after < self.store.sequence("app"):
            self.follow(limit=3)
        assert self.followed == self.known
        self.database.close()
        self.folder.cleanup()

    @rule(items=st.lists(ITEMS, max_size=5))
    def upsert(self, items: list[Item]) -> None:
        changed = {i.id: i for i in items}
        differs = sum(self.known.get(i) != item for i, item in changed.items())
        self.known.update(changed)
        assert self.store.upsert("app", items) == self.last + differs
        self.last += differs

    @rule(ids=st.lists(IDS, max_size=3))
    def delete(self, ids: list[str]) -> None:
        gone = sum(self.known.pop(i, None) is not None for i in ids)
        assert self.store.delete("app", ids) == self.last + gone
        self.last += gone

    @rule(limit=st.integers(1, 4))
    def follow(self, limit: int) -> None:
        upserted, deleted, self.after = self.store.changes("app", self.after, limit)
        self.followed.update((i.id, i) for i in upserted)
        for item_id in deleted:
            self.followed.pop(item_id, None)

    @invariant()
    def holds_what_was_written(self) -> None:
        assert {i.id: i for i in self.store.scan("app")} == self.known
        assert self.store.count("app") == len(self.known)
        assert self.store.sequence("app") == self.last


TestItemStore = ItemStoreMachine.TestCase
TestItemStore.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
