"""How a canary is tried: the `rollout` part of `app.yaml`, a frozen tree that refuses unknown keys.

A release carries it in its spec. `serving.schema` embeds it; `registry.rollout` follows it, `registry.analysis` judges
by its guards. No framework here but pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from registry.errors import ReleaseRefused

MeasureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,60}$")]


Off = BeforeValidator(lambda value: {} if value is None else value)


class Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RateGuard(Plan):
    """A share of requests that must not rise: both margins are differences of shares, 0..1."""

    margin: float = Field(ge=0, lt=1, description="Worse than the control by more than this, once shown, fails.")
    pass_margin: float | None = Field(
        None, gt=0, lt=1, description="A step passes once a rise this large is ruled out; null: it can only fail."
    )

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> RateGuard:
        if self.pass_margin is not None and self.pass_margin <= self.margin:
            raise ValueError(f"pass_margin ({self.pass_margin}) must be above margin ({self.margin})")
        return self


class LatencyGuard(RateGuard):
    """A quantile that must not rise: both margins are shares of the control's quantile (0.25: a quarter slower)."""

    margin: float = Field(ge=0, description="Slower than the control by more than this share, once shown, fails.")
    pass_margin: float | None = Field(
        None, gt=0, description="A step passes once a slow-down this large is ruled out; null: it can only fail."
    )
    slack_ms: float = Field(10.0, ge=0, description="Differences below it never count.")


class RewardGuard(RateGuard):
    """The mean reward per request, which must not fall: both margins are shares of the control's mean."""

    window_s: float = Field(60.0, ge=0, description="How long an answer waits for feedback before it is judged.")
    superiority: bool = Field(False, description="Promote only what is shown to earn more than the control ...")
    superiority_margin: float = Field(0.0, ge=0, lt=1, description="... by more than this share of its mean.")

    @model_validator(mode="after")
    def _superiority_has_a_margin(self) -> RewardGuard:
        if self.superiority_margin and not self.superiority:
            raise ValueError(f"superiority_margin ({self.superiority_margin}) needs `superiority: true`")
        return self


class Guards(Plan):
    """What is compared with the control. null switches a guard off."""

    error: RateGuard | None = RateGuard(margin=0.005, pass_margin=0.02)
    p50: LatencyGuard | None = LatencyGuard(margin=0.25, pass_margin=1.0)
    p95: LatencyGuard | None = LatencyGuard(margin=0.25, pass_margin=1.0)
    p99: LatencyGuard | None = LatencyGuard(margin=0.5)
    abstained: RateGuard | None = RateGuard(margin=0.02, pass_margin=0.1)
    empty: RateGuard | None = RateGuard(margin=0.02, pass_margin=0.1)
    reward: RewardGuard | None = RewardGuard(margin=0.02, pass_margin=0.3)
    shares: Annotated[dict[MeasureName, RateGuard], Off] = Field(
        default_factory=dict,
        description="Measures from 0 to 1 whose mean must not rise: failed_grounded, failed_schema, failed_length, "
        "failed_refusal (failed_<check>), fallback, repaired.",
    )
    medians: Annotated[dict[MeasureName, LatencyGuard], Off] = Field(
        default_factory=dict,
        description="Measures in milliseconds whose median must not rise: ms_per_token, first_token_ms.",
    )

    @model_validator(mode="after")
    def _names_are_apart(self) -> Guards:
        own = set(type(self).model_fields)
        if twice := sorted(name for name in (*self.shares, *self.medians) if name in own) or sorted(
            set(self.shares) & set(self.medians)
        ):
            raise ValueError(f"guards {twice} have a name that another guard has")
        return self


class StepPlan(Plan):
    """What each step asks for before the next one."""

    min_requests: int = Field(100, ge=1, description="Canary answers a step must have seen.")
    min_s: float = Field(30.0, ge=0)
    deadline_s: float = Field(7200.0, gt=0, description="A step without a verdict by then rolls back.")


class RolloutPlan(Plan):
    """The journey of a canary. The control gets as much as the canary, so no step can go beyond 50 percent."""

    steps_percent: tuple[float, ...] = Field((1, 5, 25, 50), min_length=1, description="The canary's share, rising.")
    step: StepPlan = StepPlan()
    shadow_percent: float = Field(
        0.0, ge=0, le=100, description="Share of requests mirrored to the canary before its first step."
    )
    bake_s: float = Field(1800.0, ge=0, description="How long the previous release stays warm after promotion.")
    bake_percent: float = Field(5.0, gt=0, le=50, description="Share of each arm that is compared during the bake.")
    load_deadline_s: float = Field(180.0, gt=0, description="A canary that is not ready by then is refused.")
    answer_within_ratio: float = Field(
        0.5, gt=0, le=0.9, description="Share of the deadline a canary gets before stable answers in its place."
    )
    false_rollback_ratio: float = Field(0.01, gt=0, lt=0.5, description="Risk of failing a release that is no worse.")
    false_pass_ratio: float = Field(0.1, gt=0, lt=0.5, description="Risk of passing a guard that is worse.")
    replicas: int = Field(1, ge=1, description="Replicas of the canary, and of its control.")
    guards: Guards = Guards()

    @model_validator(mode="after")
    def _steps_rise(self) -> RolloutPlan:
        steps = self.steps_percent
        if not all(0 < p <= 50 for p in steps) or list(steps) != sorted(set(steps)):
            raise ValueError(
                f"steps_percent must rise and lie in 0.01..50, not {list(steps)}: after the last, promotion"
            )
        if any(abs(round(p * 100) - p * 100) > 1e-9 for p in steps):
            raise ValueError(f"steps_percent has at most two decimals, not {list(steps)}")
        return self


def plan_of(spec: Mapping[str, Any]) -> RolloutPlan:
    """The plan in a release's spec; the default where it has none. Raises ReleaseRefused that names the key."""
    try:
        return RolloutPlan.model_validate(spec.get("rollout", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("rollout", *first["loc"]))
        raise ReleaseRefused(f"{key}: {first['msg']}") from None


def reward_weights(spec: Mapping[str, Any]) -> dict[str, float]:
    """What each feedback event is worth in the app of this spec."""
    return {event: float(worth) for event, worth in spec.get("feedback", {}).get("reward", {}).items()}


def reward_range(spec: Mapping[str, Any]) -> tuple[float, float]:
    """(lowest, highest) reward one request can earn, by the app's weights; 0, no feedback, lies within."""
    weights = reward_weights(spec).values()
    return min([0.0, *weights]), max([0.0, *weights])
