"""`app.yaml` as a frozen tree that refuses unknown keys and names both sides of a broken rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from registry.plan import RolloutPlan
from serving.errors import BadRequest
from serving.schema.phase_specs import GenerateSpec, LanguageModelSpec, RankSpec, UnderstandSpec
from serving.schema.record_spec import RecordSpec
from serving.schema.spec import Spec
from serving.schema.train_spec import TrainSpec

FUNNELS: dict[str, dict[str, float]] = {
    "popularity": {"half_life_days": 30.0, "views": 0.4, "orders": 0.6},
    "content": {"half_life_days": 90.0, "asked": 0.5, "profile": 0.5},
    "collaborative": {"half_life_days": 90.0, "shrinkage": 10.0, "neighbours": 50, "users": 0.5, "items": 0.5},
    "contextual": {"half_life_days": 90.0, "slots": 8, "smoothing": 20.0},
}
"""Engines that learn from what users did, with the defaults of their options; see `training.funnels`."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,62}$")]
AttributeKind = Literal["keyword", "number", "bool"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class ItemsSpec(Spec):
    """The catalogue. `source` is a JSON-lines file beside app.yaml, or a script that prints JSON lines."""

    source: str | None = Field(None, description="File (.jsonl) or script (.py, with arguments) with the first items.")
    text: tuple[str, ...] = Field(min_length=1, description="Fields that are searched, most telling first.")
    attributes: dict[str, AttributeKind] = Field(default_factory=dict, description="Attributes queries may filter on.")


class SourceSpec(Spec):
    """One way to propose candidates. `engine` names the adapter; the other keys are what that adapter reads."""

    engine: Literal["rules", "lexical", "dense", "drill", "popularity", "content", "collaborative", "contextual"]
    top_k: int = Field(10, ge=1, le=1000)
    fields: dict[str, float] = Field(default_factory=dict, description="Field -> weight; default: items.text, each 1.")
    weight: float = Field(1.0, ge=0, description="Its weight in a weighted or rrf fusion.")
    where: dict[str, Any] = Field(
        default_factory=dict, description="Only items that pass these filters, written as those of a query."
    )
    embedder: str = Field("minilm", description="dense: a folder beside app.yaml, or `minilm`, which a package ships.")
    precision: Literal["auto", "float32", "int8"] = Field(
        "auto", description="dense: auto = int8 if it passed its gate."
    )
    max_tokens: int = Field(96, ge=8, le=512, description="dense: longer item texts are cut.")
    search: Literal["auto", "exact", "ann"] = Field("auto", description="dense: auto = exact up to 20,000 items.")
    record: bool = Field(False, description="dense: the embedder reads the record of queries and items, too.")
    aliases: str | None = Field(None, description="rules: YAML file beside app.yaml; canonical word -> its spellings.")
    context: tuple[str, ...] = Field((), description="contextual: fields of the query's record that it goes by.")
    options: dict[str, float] = Field(default_factory=dict, description="Engine constants; see the engine's docs.")

    @model_validator(mode="after")
    def _funnel_fits(self) -> SourceSpec:
        if self.engine in FUNNELS and self.fields:
            raise ValueError(f"`fields` are for sources that read texts; engine `{self.engine}` reads none")
        if (self.engine == "contextual") != bool(self.context):
            fix = "needs `context`" if self.engine == "contextual" else "has no `context`"
            raise ValueError(f"a source of engine `{self.engine}` {fix}")
        known = FUNNELS.get(self.engine, {})
        if self.engine in FUNNELS and (unknown := sorted(set(self.options) - set(known))):
            raise ValueError(f"a source of engine `{self.engine}` has the options {sorted(known)}, not {unknown}")
        if self.engine in FUNNELS and (low := sorted(name for name, value in self.options.items() if value < 0)):
            raise ValueError(f"options of a source of engine `{self.engine}` are 0 or more: {low}")
        return self

    @model_validator(mode="after")
    def _dense_options(self) -> SourceSpec:
        if self.engine == "dense":
            unknown = sorted(set(self.options) - {"floor"})
            if unknown or not 0 <= self.options.get("floor", 0.0) < 1:
                raise ValueError(f"a dense source has one option, `floor`, from 0 to below 1, not {dict(self.options)}")
        return self

    @model_validator(mode="after")
    def _drill_weighs_nothing(self) -> SourceSpec:
        if self.engine == "drill" and self.weight != 0:
            raise ValueError(f"a source of engine `drill` proposes nothing: give it `weight: 0`, not {self.weight}")
        return self

    @model_validator(mode="after")
    def _keys_fit_engine(self) -> SourceSpec:
        allowed = {
            "dense": {"embedder", "precision", "max_tokens", "search", "record", "options"},
            "rules": {"aliases", "options"},
            "lexical": {"options"},
            "drill": {"options"},
            "contextual": {"context", "options"},
            **{engine: {"options"} for engine in FUNNELS if engine != "contextual"},
        }
        for engine, keys in allowed.items():
            for key in sorted(keys - allowed[self.engine]):
                # By value, not by presence: a release keeps its spec with every default written out.
                if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                    raise ValueError(f"`{key}` is for engine `{engine}`, but this source has engine `{self.engine}`")
        return self


class FusionSpec(Spec):
    """How the sources' candidates become one list.

    cascade: sources in order; a query stops at the first whose best score reaches `threshold`; if none does, the
    lists are merged by weight. weighted: convex combination of scores scaled to 0..1. rrf: reciprocal ranks.
    """

    method: Literal["cascade", "weighted", "rrf"] = "weighted"
    order: tuple[str, ...] = Field((), description="cascade: source names, first asked first.")
    threshold: float = Field(0.7, ge=0, le=1, description="cascade: a best score at or above it ends the search.")
    abstain_below: float = Field(0.0, ge=0, le=1, description="A best fused score below it is an abstention.")
    rrf_k: float = Field(60.0, gt=0)


class RetrieveSpec(Spec):
    sources: dict[str, SourceSpec] = Field(min_length=1)
    fusion: FusionSpec = FusionSpec()

    @model_validator(mode="after")
    def _order_names_sources(self) -> RetrieveSpec:
        unknown = [name for name in self.fusion.order if name not in self.sources]
        if unknown:
            raise ValueError(f"fusion.order names {unknown}, but sources are {sorted(self.sources)}")
        if self.fusion.method == "cascade" and set(self.fusion.order) != set(self.sources):
            raise ValueError(f"fusion.order must name every source of a cascade: {sorted(self.sources)}")
        return self

    @model_validator(mode="after")
    def _embedder_reads_one_way(self) -> RetrieveSpec:
        first: dict[str, str] = {}
        for name, source in self.sources.items():
            if source.engine == "dense":
                other = first.setdefault(source.embedder, name)
                for key in ("max_tokens", "precision", "record"):
                    mine, its = getattr(source, key), getattr(self.sources[other], key)
                    if mine != its:
                        raise ValueError(
                            f"sources.{other} and sources.{name} share the embedder {source.embedder!r}, but their "
                            f"`{key}` are {its!r} and {mine!r}: give both the same"
                        )
        return self


class FeedbackSpec(Spec):
    """`reward` maps an event name to its worth; an event that is not named is refused."""

    reward: dict[str, float] = Field(
        default_factory=lambda: {"select": 1.0, "click": 0.2, "order": 1.0, "reject": -0.5}
    )
    learn_expansions: bool = Field(False, description="A selection teaches the user's own abbreviations to `rules`.")
    source: str | None = Field(
        None,
        description="What users did before Palate, for the sources that learn from it: a .jsonl file beside app.yaml, "
        "or a script (.py, with arguments) that prints lines {user, item, event, at_s, record}.",
    )


class AutoscalingSpec(Spec):
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(2.0, gt=0)
    upscale_delay_s: float = Field(30.0, ge=0)
    downscale_delay_s: float = Field(600.0, ge=0)
    look_back_period_s: float = Field(30.0, gt=0)

    @model_validator(mode="after")
    def _min_at_most_max(self) -> AutoscalingSpec:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self


class UnitPlacement(Spec):
    """Where one unit of a split release runs: its replicas, or its autoscaling, and what each replica holds."""

    replicas: int = Field(1, ge=1)
    autoscaling: AutoscalingSpec | None = None
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)
    max_ongoing_requests: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _replicas_or_autoscaling(self) -> UnitPlacement:
        if self.autoscaling and self.replicas != 1:
            raise ValueError("`replicas` and `autoscaling` exclude each other: autoscaling sets the replicas")
        return self


class PlacementSpec(Spec):
    """inline: all phases in the router's replica. split: a Ray Serve deployment per unit."""

    default: Literal["inline", "split"] = "inline"
    units: dict[Literal["understand", "embed", "retrieve", "rank", "generate"], UnitPlacement] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _units_need_split(self) -> PlacementSpec:
        if self.units and self.default == "inline":
            raise ValueError(f"placement.units {sorted(self.units)} need `default: split`, but default is `inline`")
        return self


class EvaluationSpec(Spec):
    """A frozen set of cases: JSON lines `{"query", "accept": [ids], "slice"}`; an empty `accept` wants abstention."""

    source: str
    metric: Literal["success_at_k", "accuracy"] = "success_at_k"
    k: int = Field(10, ge=1, le=100)


class AppSpec(Spec):
    name: Name
    description: str = ""
    items: ItemsSpec
    record: RecordSpec | None = Field(None, description="What queries and items carry beside their text.")
    language_model: LanguageModelSpec | None = Field(None, description="What `understand` and `generate` run on.")
    understand: UnderstandSpec = UnderstandSpec()
    retrieve: RetrieveSpec
    rank: RankSpec | None = None
    generate: GenerateSpec | None = None
    feedback: FeedbackSpec = FeedbackSpec()
    placement: PlacementSpec = PlacementSpec()
    rollout: RolloutPlan = RolloutPlan()
    evaluation: dict[str, EvaluationSpec] = Field(default_factory=dict)
    train: dict[Name, TrainSpec] = Field(default_factory=dict, description="What learns, by a name of its own.")
    deadline_s: float = Field(5.0, gt=0, le=300)
    example_query: str = Field("", description="The query that `palate up` shows as a curl line.")

    @model_validator(mode="after")
    def _fields_are_items(self) -> AppSpec:
        for name, source in self.retrieve.sources.items():
            unknown = sorted(set(source.fields) - set(self.items.text))
            if unknown:
                raise ValueError(f"retrieve.sources.{name}.fields names {unknown}, but items.text is {self.items.text}")
        return self

    @model_validator(mode="after")
    def _wheres_are_attributes(self) -> AppSpec:
        for name, source in self.retrieve.sources.items():
            unknown = sorted(set(source.where) - set(self.items.attributes))
            if unknown:
                raise ValueError(
                    f"retrieve.sources.{name}.where names {unknown}, but items.attributes has "
                    f"{sorted(self.items.attributes)}"
                )
        return self

    @model_validator(mode="after")
    def _gates_name_sets(self) -> AppSpec:
        for name, train in self.train.items():
            unknown = sorted(set(train.gates) - {*self.evaluation, "feedback"})
            if unknown:
                raise ValueError(
                    f"train.{name}.gates names {unknown}, but the sets of `evaluation` are {sorted(self.evaluation)} "
                    "(and `feedback`)"
                )
        return self

    @model_validator(mode="after")
    def _phases_have_a_model(self) -> AppSpec:
        asking = ["understand"] * (self.understand.engine == "llm") + ["generate"] * (self.generate is not None)
        if asking and self.language_model is None:
            raise ValueError(f"{' and '.join(asking)} ask a language model: say which in `language_model`")
        return self

    @model_validator(mode="after")
    def _records_are_declared(self) -> AppSpec:
        for name, source in self.retrieve.sources.items():
            if source.record and self.record is None:
                raise ValueError(
                    f"retrieve.sources.{name} has `record: true`, but there is no section `record` that says what is "
                    "in one"
                )
        return self

    @model_validator(mode="after")
    def _contexts_are_declared(self) -> AppSpec:
        known = sorted(self.record.fields) if self.record is not None else []
        for name, source in self.retrieve.sources.items():
            if unknown := sorted(set(source.context) - set(known)):
                raise ValueError(f"retrieve.sources.{name}.context names {unknown}, but record.fields has {known}")
        return self

    def record_field(self, source: SourceSpec) -> str | None:
        """The item field whose record a source reads; None where it reads text alone."""
        return self.record.field if source.record and self.record is not None else None

    def text_weights(self, source: SourceSpec) -> dict[str, float]:
        """The fields a source reads, with their weights."""
        return dict(source.fields) or dict.fromkeys(self.items.text, 1.0)


def load_app_spec(path: Path) -> AppSpec:
    """Read and validate an `app.yaml` (or the folder that holds it). Raises BadRequest that names key and fix."""
    file = path / "app.yaml" if path.is_dir() else path
    try:
        raw: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"there is no {file}: an app is a folder with an app.yaml", field="app.yaml") from None
    except yaml.YAMLError as error:
        raise BadRequest(f"{file} is not YAML: {error}", field="app.yaml") from None
    return parse_app_spec(_with_model_folder(raw, file.parent), f"{file}: ")


def _with_model_folder(raw: Any, folder: Path) -> Any:
    """A language model that lies beside app.yaml, by its whole path: who loads it knows the spec only."""
    language_model = raw.get("language_model") if isinstance(raw, dict) else None
    if not isinstance(language_model, dict):
        return raw
    model = language_model.get("model")
    if not isinstance(model, str) or not (folder / model / "config.json").is_file():
        return raw
    return {**raw, "language_model": {**language_model, "model": str((folder / model).resolve())}}


def parse_app_spec(raw: Any, where: str = "") -> AppSpec:
    """`where` begins the message. Raises BadRequest that names the key."""
    try:
        return AppSpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{where}{key or 'the document'}: {first['msg']}", field=key) from None


def find_app(name: str) -> Path:
    """The folder of an app: a path, or an example's name. Raises BadRequest with what there is."""
    for folder in (Path(name), EXAMPLES / name):
        if (folder / "app.yaml").is_file():
            return folder.resolve()
    examples = sorted(path.parent.name for path in EXAMPLES.glob("*/app.yaml"))
    raise BadRequest(f"there is no app {name!r}: give a folder with an app.yaml, or one of the examples {examples}")
