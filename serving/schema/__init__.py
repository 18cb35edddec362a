"""The words of the query side as types: an application, its items, a query and what answers it.

Nothing here imports ray, torch or a database, so every other module, training included, may use it.
"""

from serving.schema.app_spec import (
    AppSpec,
    AutoscalingSpec,
    EvaluationSpec,
    FeedbackSpec,
    FusionSpec,
    ItemsSpec,
    PlacementSpec,
    RetrieveSpec,
    SourceSpec,
    UnderstandSpec,
    UnitPlacement,
    find_app,
    load_app_spec,
)
from serving.schema.domain import Candidate, Filters, Item, Query, Result, Understood
from serving.schema.feedback import FeedbackEvent, Trace

__all__ = [
    "AppSpec",
    "AutoscalingSpec",
    "Candidate",
    "EvaluationSpec",
    "FeedbackEvent",
    "FeedbackSpec",
    "Filters",
    "FusionSpec",
    "Item",
    "ItemsSpec",
    "PlacementSpec",
    "Query",
    "Result",
    "RetrieveSpec",
    "SourceSpec",
    "Trace",
    "UnderstandSpec",
    "Understood",
    "UnitPlacement",
    "find_app",
    "load_app_spec",
]
