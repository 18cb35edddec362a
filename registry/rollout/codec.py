"""An app's state as JSON, for the journal. What a newer version added is left out when an older one reads it, and what
an older one did not know has its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from pydantic import BaseModel

from registry.plan import RolloutPlan
from registry.rollout.state import AliasWrite, AppState, Rollout, TagWrite


def state_to_json(state: AppState) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers."""
    plain = _plain(state)
    plain["rollout"] = None if state.rollout is None else _rollout_to_json(state.rollout)
    plain["quarantined"] = {str(version): reason for version, reason in state.quarantined.items()}
    plain["alias_writes"] = [_plain(write) | {"replaces": list(write.replaces)} for write in state.alias_writes]
    plain["tag_writes"] = [_plain(write) | {"tags": dict(write.tags)} for write in state.tag_writes]
    return plain


def state_from_json(data: Mapping[str, Any]) -> AppState:
    """The inverse. Raises KeyError, TypeError or ValueError for what is no state."""
    known = _known(AppState, data)
    rollout = known.get("rollout")
    known["rollout"] = None if rollout is None else _rollout_from_json(rollout)
    known["quarantined"] = {int(version): reason for version, reason in known.get("quarantined", {}).items()}
    known["alias_writes"] = tuple(
        AliasWrite(**_known(AliasWrite, write) | {"replaces": tuple(write["replaces"])})
        for write in known.get("alias_writes", ())
    )
    known["tag_writes"] = tuple(TagWrite(**_known(TagWrite, write)) for write in known.get("tag_writes", ()))
    return AppState(**known)


def _rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    return _plain(rollout) | {"plan": rollout.plan.model_dump(mode="json")}


def _rollout_from_json(data: Mapping[str, Any]) -> Rollout:
    known = _known(Rollout, data)
    known["plan"] = RolloutPlan.model_validate(_known_to_model(RolloutPlan, data["plan"]))
    return Rollout(**known)


def _plain(value: AppState | Rollout | AliasWrite | TagWrite) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _known(kind: type[AppState | Rollout | AliasWrite | TagWrite], data: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def _known_to_model(model: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """Plans forbid unknown keys, where people write them; here they come from a newer version."""
    known: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in data:
            continue
        value = data[name]
        part = next((t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)), None)
        known[name] = _known_to_model(part, value) if part is not None and isinstance(value, Mapping) else value
    return known


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
