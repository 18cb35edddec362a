"""The live catalogue under any sequence of changes, and filters under any values, against plain Python."""

from __future__ import annotations

import math
import operator
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.components.catalogue import Catalogue, build_catalogue
from serving.schema import Item
from serving.schema.app_spec import AttributeKind

OPERATORS = {"gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}
KINDS: dict[str, AttributeKind] = {"k": "keyword", "n": "number", "b": "bool"}

keywords, numbers, bools = (
    st.sampled_from(["", "a", "가", "None"]),
    st.integers(-3, 3) | st.floats(-3, 3),
    st.booleans(),
)
attributes = st.fixed_dictionaries(
    {}, optional={"k": keywords | st.none(), "n": numbers | st.none(), "b": bools | st.none()}
)
items = st.builds(
    Item,
    st.sampled_from("abcdefgh"),
    st.dictionaries(st.sampled_from(["name", "이름"]), st.text(max_size=5) | st.integers(-9, 9), max_size=2),
    attributes,
)
snapshots = st.lists(items, max_size=8, unique_by=lambda item: item.id)
ranges = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), numbers, max_size=3)
filters = st.fixed_dictionaries(
    {},
    optional={
        "k": keywords | st.lists(keywords, max_size=3),
        "n": numbers | st.lists(numbers, max_size=3) | ranges,
        "b": bools | st.lists(bools, max_size=2),
    },
)


def passes(item: Item, wanted: dict[str, Any]) -> bool:
    for name, filter_value in wanted.items():
        value = item.attributes.get(name)
        if value is None:
            return False
        if isinstance(filter_value, dict):
            if not all(getattr(operator, OPERATORS[name])(value, bound) for name, bound in filter_value.items()):
                return False
        elif value not in (filter_value if isinstance(filter_value, list) else [filter_value]):
            return False
    return True


class LiveCatalogue(RuleBasedStateMachine):
    @initialize(snapshot=snapshots)
    def build(self, snapshot: list[Item]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            build_catalogue(Path(folder), snapshot, KINDS)
            self.catalogue = Catalogue.load(Path(folder))
        self.model = {item.id: item for item in snapshot}

    @rule(upserts=st.lists(items, max_size=4), deletes=st.lists(st.sampled_from("abcdefgh"), max_size=3))
    def apply(self, upserts: list[Item], deletes: list[str]) -> None:
        rows = self.catalogue.rows
        assert self.catalogue.apply(upserts, deletes) == rows
        assert self.catalogue.rows == rows + len(upserts)
        self.model.update({item.id: item for item in upserts})
        for item_id in deletes:
            self.model.pop(item_id, None)

    @rule(wanted=filters)
    def filter(self, wanted: dict[str, Any]) -> None:
        found = self.live(wanted)
        assert sorted(found) == sorted(i for i, item in self.model.items() if passes(item, wanted))

    @invariant()
    def every_live_item_is_there_once_as_it_was_written(self) -> None:
        found = self.live({})
        assert len(self.catalogue) == len(self.model) == len(found)
        for item_id, row in found.items():
            assert item_id in self.catalogue
            assert orjson.loads(self.catalogue.document(row)) == dict(self.model[item_id].fields)

    def live(self, wanted: dict[str, Any]) -> dict[str, int]:
        mask = self.catalogue.allowed(wanted)
        rows = list(range(self.catalogue.rows)) if mask is None else np.flatnonzero(mask).tolist()
        assert mask is None or len(mask) == self.catalogue.rows
        found = {self.catalogue.ids[row]: row for row in rows}
        assert len(found) == len(rows)
        return found


LiveCatalogue.TestCase.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
TestLiveCatalogue = LiveCatalogue.TestCase


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.data())
def test_numbers_are_kept_exactly(values: list[float], data: st.DataObject) -> None:
    snapshot = [Item(str(i), {}, {"n": value}) for i, value in enumerate(values)]
    with tempfile.TemporaryDirectory() as folder:
        build_catalogue(Path(folder), snapshot, KINDS)
        catalogue = Catalogue.load(Path(folder))
    one = data.draw(st.sampled_from(values))
    mask = catalogue.allowed({"n": one})
    assert mask is not None
    assert mask.tolist() == [math.isclose(value, one, rel_tol=0, abs_tol=0) for value in values]
