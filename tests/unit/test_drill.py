"""Drills: refused where nobody allowed them, and exactly as faulty as they were asked to be."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from registry.errors import ReleaseRefused
from serving.commands.derive import checked, with_drill
from serving.errors import BadRequest
from serving.retrieve.drill import ALLOWED, DrillFailure, DrillSource
from serving.schema import Query, SourceSpec
from tests.endpoint import made_up_spec

ALLOWED_HERE = {ALLOWED: "1"}


def failures(source: DrillSource, queries: int) -> int:
    failed = 0
    for _ in range(queries):
        try:
            [hits] = source.search([Query("tea")], [None], 10)
            assert len(hits.rows) == 0
        except DrillFailure:
            failed += 1
    return failed


def test_a_drill_is_refused_where_it_was_not_allowed():
    with pytest.raises(ReleaseRefused, match="PALATE_DRILLS=1"):
        DrillSource({"fail_ratio": 1}, {})


def test_a_drill_that_refuses_does_not_load():
    with pytest.raises(ReleaseRefused, match="does not load"):
        DrillSource({"refuse": 1}, ALLOWED_HERE)


@pytest.mark.parametrize(("ratio", "expected"), [(0, 0), (0.1, 10), (0.5, 50), (1, 100)])
def test_the_share_that_fails_is_the_share_asked_for(ratio: float, expected: int):
    assert failures(DrillSource({"fail_ratio": ratio}, ALLOWED_HERE), 100) == pytest.approx(expected, abs=1)


def test_queries_before_after_are_answered():
    source = DrillSource({"fail_ratio": 1, "after": 20}, ALLOWED_HERE)
    assert failures(source, 20) == 0
    assert failures(source, 5) == 5


@pytest.mark.parametrize("options", [{"fail": 1.0}, {"fail_ratio": 2.0}, {"delay_ms": -1.0}])
def test_an_option_that_cannot_be_is_named(options: dict[str, float]):
    with pytest.raises(BadRequest, match=next(iter(options))):
        DrillSource(options, ALLOWED_HERE)


def test_a_drill_must_not_weigh():
    with pytest.raises(ValidationError, match="weight: 0"):
        SourceSpec(engine="drill")


def test_a_spec_with_a_drill_is_a_valid_spec_that_asks_it_first():
    spec = with_drill(made_up_spec("teas").model_dump(mode="json"), {"fail_ratio": 1})
    assert checked(spec)["retrieve"]["sources"]["drill"]["options"] == {"fail_ratio": 1}
    order = spec["retrieve"]["fusion"]["order"]
    assert not order or order[0] == "drill"
