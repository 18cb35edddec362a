"""What /openapi.json says of the rollout routes: the body of a command, and an example of each answer. Made up."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from registry.traffic import Verb

NEEDS_VERSION = frozenset({"start", "switch"})
MAX_WHY_CHARS = 1000
MAX_BY_CHARS = 80

NOT_YET = "the controller has not dealt with it yet: it is kept; GET this route to see"
NOBODY = "no controller is running: the command is kept, and dealt with as soon as one runs"


class RolloutRequest(BaseModel):
    """What a person asks of an app's rollout, and why."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"action": "start", "version": 7, "why": "new synonyms", "by": "kim"},
                {"action": "rollback", "why": "customers report wrong vintages"},
            ]
        },
    )

    action: Verb = Field(
        description="start: begin a rollout of `version`. pause, resume: hold, go on. promote: skip what is left. "
        "abort: end it, without quarantine. rollback: end it or go back to the previous release, with quarantine. "
        "switch: `version` becomes stable at once."
    )
    version: int | None = Field(
        None,
        ge=1,
        description="The release to start or switch to. Else what the caller believes to be on its way "
        "(for rollback: or stable), so that a command that comes twice does no harm.",
    )
    why: str = Field(max_length=MAX_WHY_CHARS, description="Kept in the journal and in the release's tags.")
    by: str | None = Field(None, max_length=MAX_BY_CHARS, description="Who asks; kept beside the key's name.")

    @field_validator("why", "by")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is None:
            return None
        if not text.strip():
            raise ValueError("must not be empty: whoever reads it later has only this")
        if not text.isprintable():
            raise ValueError("must be plain text on one line, without control characters")
        return text.strip()


_ENTRY = {
    "app": "wine-orders", "rollout": 3, "at_s": 1795000331.4, "kind": "rolled-back", "who": "controller",
    "why": "error: the canary failed 31.2 % of its requests, the control 0.1 %", "version": 7,
    "details": {"phase": "step", "percent": 25.0}, "id": 42,
}  # fmt: skip
_SUMMARY = {
    "number": 3, "version": 7, "base": 6, "outcome": "rolled back",
    "headline": "wine-orders, rollout 3: version 7 was rolled back after 5 min 31 s by controller.",
    "reason": _ENTRY["why"], "started": "2026-11-18T11:06:40.000+00:00", "ended": "2026-11-18T11:12:11.400+00:00",
    "who": "kim (key local 1a2b3c4d5e6f)", "why": "new synonyms",
}  # fmt: skip
_GUARD = {
    "name": "error", "state": "Pass",
    "sentence": "error: canary fails 0 % of requests, control 0.25 %; a rise of 2 points is ruled out",
    "canary": 0.0, "canary_low": 0.0, "canary_high": 0.019, "control": 0.0025, "control_low": 0.0,
    "control_high": 0.024, "evidence": 0.02, "fails_at": 400.0, "superior": None, "failed_after": None,
}  # fmt: skip
_SERVING = {"stable": 6, "percent": {"6": 95.0, "7": 5.0}}


def _answer(description: str, example: Any, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": _schema(example), "example": example}}}


def _schema(example: Any) -> dict[str, Any]:
    return {"type": "string"} if isinstance(example, str) else {"type": "object", "required": sorted(example)}


RELEASES: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "The releases, newest first.",
        {"app": "wine-orders", "serving": _SERVING, "releases": [
            {"version": 7, "aliases": ["canary"], "created": "2026-11-18T10:59:02.120+00:00", "digest": "5f0c…",
             "metrics": {"names_accuracy": 0.97}, "tags": {"palate.rollout": "step 2 of 4"}},
        ]},
    )
}  # fmt: skip
ROLLOUT: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "The rollout that is on its way; `rollout` is null when none is. `verdict` is what the evidence says now: it "
        "became so `age_s` seconds ago. `evidence` fails a guard at `fails_at`; null: it has no end.",
        {
            "app": "wine-orders", "controller": "host-1", "serving": _SERVING, "stable": 6, "previous": 5,
            "rollout": {
                "number": 3, "version": 7, "base": 6, "phase": "step", "step": 2, "steps_percent": [1, 5, 25, 50],
                "percent": 5.0, "paused": False, "alarm_only": False, "alarmed": False, "started_s": 1795000000.0,
                "since_s": 1795000128.0, "who": "kim (key local 1a2b3c4d5e6f)", "why": "new synonyms",
                "requests": {"canary": {"requests": 412, "failed": 0}, "control": {"requests": 405, "failed": 1}},
                "verdict": {"state": "Pass", "sentence": "nothing is worse", "guards": [_GUARD],
                            "canary_requests": 400, "control_requests": 395, "at_s": 1795000330.2, "age_s": 0.4},
                "shadow": {"requests": 250, "failures": 0, "compared": 250, "agreed": 241},
            },
            "arms": [], "routers": [], "quarantined": {"4": "error: the canary failed 9 % of its requests"},
            "waiting": {"commands": [], "aliases": [], "tags": []}, "last": _ENTRY,
        },
    )
}  # fmt: skip
COMMAND: dict[int | str, dict[str, Any]] = {
    200: _answer("It was dealt with.", {"command": 12, "handled": True, "entries": [_ENTRY]}),
    202: _answer(
        "It is kept, but not dealt with yet.", {"command": 12, "handled": False, "entries": [], "note": NOBODY}
    ),
}
ROLLOUTS: dict[int | str, dict[str, Any]] = {
    200: _answer("The rollouts, newest first.", {"app": "wine-orders", "rollouts": [_SUMMARY]})
}
STORY: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "One rollout.",
        {**_SUMMARY, "app": "wine-orders", "story": f"{_SUMMARY['headline']}\n…\n", "entries": [_ENTRY]},
    )
}
REPORT: dict[int | str, dict[str, Any]] = {200: _answer("The page.", "<!doctype html>…", "text/html")}
