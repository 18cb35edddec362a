"""The `train` section of app.yaml: what the app learns from, how, and what a candidate has to show.

Read by `training` (jobs) and by whoever shows an app's spec. Pure.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from serving.schema.spec import Spec

Metric = Literal["success_at_k", "recall_at_k", "accuracy", "mrr", "map", "ndcg_at_k", "precision_at_k", "auc",
                 "log_loss", "calibration_error", "perplexity"]  # fmt: skip
"""What a gate compares; of the last three less is better."""


class DataSpec(Spec):
    """How examples are made of traces and feedback (see `training.dataset`), and what is added to them."""

    feedback: bool = Field(True, description="Learn from what users chose and rejected.")
    extra: str | None = Field(
        None,
        description="More examples: a .jsonl file beside app.yaml, or a script (.py, with arguments) printing them.",
    )
    event_weights: dict[str, float] = Field(
        default_factory=lambda: {"order": 2.0, "select": 2.0, "favorite": 1.5, "click": 1.0},
        description="Event -> weight of the positive it makes.",
    )
    negative_events: tuple[str, ...] = Field(("reject",), description="Events that turn an item down.")
    negatives_per_positive: float = Field(2.0, gt=0, description="Kept at most; the hardest first.")
    hard_score: float = Field(0.8, ge=0, le=1, description="A negative shown with a higher score is a hard one ...")
    hard_weight: float = Field(1.5, gt=0, description="... and has this weight.")
    mined: int = Field(0, ge=0, le=10, description="Hard negatives per positive, mined with the stable release.")
    position_bias: bool = Field(True, description="Weigh clicks by how seldom their rank is looked at.")
    train_ratio: float = Field(0.8, gt=0, lt=1)
    validation_ratio: float = Field(0.1, gt=0, lt=1)
    unseen_items_ratio: float = Field(0.1, ge=0, lt=1, description="Items whose examples are kept out of training.")
    max_age_days: float | None = Field(None, gt=0)
    min_examples: int = Field(50, ge=1, description="Fewer positives to train on are refused.")

    @model_validator(mode="after")
    def _ratios_leave_a_test(self) -> DataSpec:
        if self.train_ratio + self.validation_ratio >= 1:
            raise ValueError(
                f"train_ratio ({self.train_ratio}) and validation_ratio ({self.validation_ratio}) leave no test part: "
                "their sum has to be below 1"
            )
        return self


class ScalingSpec(Spec):
    """Workers of a training job, and what each of them holds. gloo on CPUs, nccl where `num_gpus` is above 0."""

    workers: int = Field(1, ge=1, le=512)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)


class TriggerSpec(Spec):
    """When a job starts by itself; neither: only by hand."""

    new_events: int | None = Field(None, ge=1, description="This many feedback events since the last run.")
    every_s: float | None = Field(None, ge=60, description="This long since the last run began.")


class GateSpec(Spec):
    """Candidate against stable on one evaluation set, by the paired bootstrap's interval of the difference in `metric`.

    better: the interval lies above `margin`. no_worse: it lies above `-margin`. `slice_margin`: what any slice may
    lose, judged in the same way; None: slices are not judged.
    """

    metric: Metric = "success_at_k"
    require: Literal["better", "no_worse"] = "better"
    margin: float = Field(0.0, ge=0)
    slice_margin: float | None = Field(0.1, ge=0)
    level: float = Field(0.95, gt=0.5, lt=1)


class TrainSpec(Spec):
    """One model that learns. `options` are the trainer's own, checked by it; `gates` name sets of `evaluation`, or
    `feedback` (the test part of the data set)."""

    trainer: Literal["contrastive", "lora", "wide_deep", "taste2vec"]
    component: str = Field("", description="What it replaces; default: the only one of the trainer's kind.")
    data: DataSpec = DataSpec()
    options: dict[str, Any] = Field(default_factory=dict)
    start: Literal["base", "stable"] = Field("base", description="Begin with the named model, or with what serves.")
    scaling: ScalingSpec = ScalingSpec()
    trigger: TriggerSpec = TriggerSpec()
    gates: dict[str, GateSpec] = Field(default_factory=dict)
    canary: bool = Field(False, description="A candidate that passes its gates gets the alias `canary`.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _canary_is_earned(self) -> TrainSpec:
        if self.canary and not self.gates:
            raise ValueError(
                "canary is true, and there are no gates that a candidate could fail: name at least one under `gates`, "
                "or set canary to false and give the alias by hand"
            )
        return self
