"""The `record` section of app.yaml: what a query and an item may carry beside their text, field by field.

Embedders that read records (`retrieve.sources.NAME.record`) take their input widths from it, the endpoint checks
queries by it, `serving.components.record` the records of items. Pure.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from serving.schema.spec import Spec

MOST_METRICS = 20
FieldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class MetricSpec(Spec):
    """A number between `min` and `max`."""

    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _min_below_max(self) -> MetricSpec:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) has to be below max ({self.max:g})")
        return self


class ContextSpec(Spec):
    """One of: a number from `min` to `max`; a number that comes round after `cycle` (an hour: 24), from 0 to below it;
    a word of `choices`."""

    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)
    cycle: float | None = Field(None, gt=0, allow_inf_nan=False)
    choices: tuple[str, ...] = Field((), max_length=32)

    @model_validator(mode="after")
    def _is_one_kind(self) -> ContextSpec:
        ranged = self.min is not None or self.max is not None
        if ranged + (self.cycle is not None) + bool(self.choices) != 1:
            raise ValueError("a context field has either `min` and `max`, or `cycle`, or `choices`")
        if ranged and (self.min is None or self.max is None or self.min >= self.max):
            raise ValueError(f"`min` ({self.min}) and `max` ({self.max}) go together, and min is below max")
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"`choices` has a word twice: {list(self.choices)}")
        return self

    @property
    def width(self) -> int:
        """Numbers it takes: sine and cosine of a cycle, one per choice, one otherwise; and one that says it is
        there."""
        return 1 + (2 if self.cycle is not None else len(self.choices) or 1)

    def fault(self, value: object) -> str | None:
        """What is wrong with a value, None where nothing is."""
        if self.choices:
            return None if value in self.choices else f"is one of {list(self.choices)}, not {value!r}"
        low, high = (0.0, self.cycle) if self.cycle is not None else (self.min, self.max)
        assert low is not None
        assert high is not None  # _is_one_kind
        fault = number_fault(value, low, high)
        if fault is None and self.cycle is not None and value == high:
            return f"comes round at {high:g}: send 0 for it"
        return fault


class RecordSpec(Spec):
    """`{"metrics": {name: number}, "context": [{name: value}, ...], name: value, ...}`: measurements, the moments
    around them, oldest first, and whatever else `fields` names. Every field may be missing."""

    field: FieldName = Field("record", description="Item field that holds the item's own record.")
    metrics: dict[FieldName, MetricSpec] = Field(default_factory=dict, max_length=MOST_METRICS)
    context: dict[FieldName, ContextSpec] = Field(default_factory=dict, max_length=MOST_METRICS)
    max_context: int = Field(8, ge=1, le=64, description="Entries of `context` at most.")
    fields: dict[FieldName, ContextSpec] = Field(
        default_factory=dict, description="Values of the query as a whole; a ranker knows them as `record.NAME`."
    )

    @model_validator(mode="after")
    def _names_are_free(self) -> RecordSpec:
        if taken := sorted({"metrics", "context"} & set(self.fields)):
            raise ValueError(f"fields.{taken[0]}: that name has a meaning of its own; choose another")
        return self

    @property
    def context_width(self) -> int:
        return sum(field.width for field in self.context.values())


def number_fault(value: object, low: float, high: float) -> str | None:
    """What is wrong with a number that has to lie in `low`..`high`, None where nothing is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"is a number, not {value!r}"
    return None if low <= value <= high else f"is {value:g}, but lies between {low:g} and {high:g}"
