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
    UnitPlacement,
    find_app,
    load_app_spec,
    parse_app_spec,
)
from serving.schema.domain import Candidate, Filters, Item, Query, Result, Turn, Understood
from serving.schema.feedback import FeedbackEvent, Trace
from serving.schema.phase_specs import GenerateSpec, LanguageModelSpec, MemorySpec, RankSpec, UnderstandSpec
from serving.schema.record_spec import ContextSpec, MetricSpec, RecordSpec
from serving.schema.train_spec import DataSpec, GateSpec, ScalingSpec, TrainSpec, TriggerSpec

__all__ = [
    "AppSpec",
    "AutoscalingSpec",
    "Candidate",
    "ContextSpec",
    "DataSpec",
    "EvaluationSpec",
    "FeedbackEvent",
    "FeedbackSpec",
    "Filters",
    "FusionSpec",
    "GateSpec",
    "GenerateSpec",
    "Item",
    "ItemsSpec",
    "LanguageModelSpec",
    "MemorySpec",
    "MetricSpec",
    "PlacementSpec",
    "Query",
    "RankSpec",
    "RecordSpec",
    "Result",
    "RetrieveSpec",
    "ScalingSpec",
    "SourceSpec",
    "Trace",
    "TrainSpec",
    "TriggerSpec",
    "Turn",
    "UnderstandSpec",
    "Understood",
    "UnitPlacement",
    "find_app",
    "load_app_spec",
    "parse_app_spec",
]
