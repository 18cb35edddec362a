"""Records: how they travel behind a text, what of them is refused, and how they are declared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.components.record import SEPARATOR, check_record, compose, item_input, take_apart
from serving.errors import BadRequest
from serving.schema import AppSpec, ContextSpec, Item, RecordSpec
from tests.tiny_taste import RECORD, record_spec, spec

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
OBJECTS = st.dictionaries(st.text(max_size=5), SCALARS | st.lists(SCALARS, max_size=3), max_size=4)


@given(st.text(), OBJECTS)
def test_what_is_composed_is_taken_apart(text: str, record: dict[str, Any]) -> None:
    kept = {key: value for key, value in record.items() if value is not None}
    assert take_apart(compose(text, record)) == (text.replace(SEPARATOR, " "), kept)


@given(st.text())
def test_a_text_cannot_bring_a_record(text: str) -> None:
    assert take_apart(compose(text + SEPARATOR + '{"metrics":{}}', {}))[1] == {}


def test_equal_records_are_one_input_and_others_are_not() -> None:
    first = compose("a", {"metrics": {"x": 1.0, "y": 2}, "context": []})
    assert first == compose("a", {"context": [], "metrics": {"y": 2, "x": 1.0, "z": None}})
    assert len({first, compose("a", {}), compose("a", {"metrics": {"x": 1.5, "y": 2}}), compose("b", {})}) == 4


@pytest.mark.parametrize("broken", [f"a{SEPARATOR}", f"a{SEPARATOR}[1]", f"a{SEPARATOR}{{"])
def test_what_was_not_composed_is_text(broken: str) -> None:
    text, record = take_apart(broken)
    assert record == {}
    assert text.startswith("a ")


def test_an_item_gives_its_record_only_to_who_reads_it() -> None:
    item = Item("1", {"name": "red", "record": {"metrics": {"gloss": 1}}})
    assert item_input(item, ["name"], None) == "red"
    assert take_apart(item_input(item, ["name"], "record")) == ("red", {"metrics": {"gloss": 1}})
    assert item_input(Item("2", {"name": "red", "record": "shiny"}), ["name"], "record") == "red"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"metric": {}}, "record.metric"),
        ({"metrics": [1]}, "record.metrics"),
        ({"metrics": {"glos": 1}}, "record.metrics.glos"),
        ({"metrics": {"gloss": "high"}}, "record.metrics.gloss"),
        ({"metrics": {"gloss": True}}, "record.metrics.gloss"),
        ({"metrics": {"gloss": 11}}, "record.metrics.gloss"),
        ({"metrics": {"gloss": float("nan")}}, "record.metrics.gloss"),
        ({"context": {"hour": 1}}, "record.context"),
        ({"context": [{}] * 4}, "record.context"),
        ({"context": [{}, {"hour": 24}]}, "record.context.1.hour"),
        ({"context": [{"place": "moon"}]}, "record.context.0.place"),
        ({"context": [{"place": ["home"]}]}, "record.context.0.place"),
        ({"context": [{"minute": 1}]}, "record.context.0.minute"),
        ({"context": [7]}, "record.context.0"),
        ({"budget": -1}, "record.budget"),
    ],
)
def test_a_fault_is_named(record: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_record(record, record_spec())
    assert caught.value.field == field


def test_good_records_pass() -> None:
    check_record({}, None)
    moment = {"hour": 23.5, "mood": None, "place": "home"}
    check_record({"metrics": {"gloss": 0, "weight": None}, "context": [moment, {}], "budget": 10}, record_spec())
    with pytest.raises(BadRequest, match="no section `record`"):
        check_record({"metrics": {}}, None)


@pytest.mark.parametrize(
    "context", [{}, {"min": 0}, {"min": 2, "max": 1}, {"cycle": 24, "choices": ["a"]}, {"choices": ["a", "a"]}]
)
def test_a_context_field_is_of_one_kind(context: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ContextSpec.model_validate(context)


def test_a_declaration_is_checked() -> None:
    with pytest.raises(ValidationError, match="meaning of its own"):
        RecordSpec.model_validate({"fields": {"metrics": {"min": 0, "max": 1}}})
    with pytest.raises(ValidationError, match="at most 20"):
        RecordSpec.model_validate({"metrics": {f"m{n}": {"min": 0, "max": 1} for n in range(21)}})
    with pytest.raises(ValidationError, match="no section `record`"):
        spec(record=None)
    assert AppSpec.model_validate(spec().model_dump(mode="json")) == spec()
    assert record_spec().context_width == sum(c.width for c in record_spec().context.values()) == 3 + 2 + 3
    assert list(record_spec().metrics) == list(RECORD["metrics"])
