"""What an API server would refuse: core kinds by the schemas that `kubernetes-validate` carries, others by those in
`crds/`; unknown fields are refused in both."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

KUBERNETES = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.34.0-local-strict"
CRDS = Path(__file__).parent / "crds"


def fault(manifest: dict[str, Any]) -> str | None:
    """What is wrong with it, or None."""
    validator = _validator(manifest["apiVersion"], manifest["kind"])
    if validator is None:
        return f"no schema for {manifest['apiVersion']} {manifest['kind']}"
    errors = sorted(validator.iter_errors(manifest), key=lambda error: len(error.path), reverse=True)
    return f"{'.'.join(map(str, errors[0].path))}: {errors[0].message[:300]}" if errors else None


@functools.cache
def _validator(api_version: str, kind: str) -> Draft202012Validator | None:
    group, _, version = api_version.rpartition("/")
    if (found := _crds().get((group, kind))) is not None:
        return _custom(found, version)
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1 -> rbac-v1
    path = KUBERNETES / f"{kind.lower()}-{short}.json"
    if not path.exists():
        return None
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")), registry=_definitions())


@functools.cache
def _definitions() -> Registry[Any]:
    """The definitions that all core kinds share: half a second to read, so once."""
    body = json.loads((KUBERNETES / "_definitions.json").read_text(encoding="utf-8"))
    resource = Resource.from_contents(body, default_specification=DRAFT202012)
    return Registry().with_resource("_definitions.json", resource).with_resource(body.get("$id", ""), resource)


@functools.cache
def _crds() -> dict[tuple[str, str], Path]:
    bodies = {path: json.loads(path.read_text(encoding="utf-8")) for path in CRDS.glob("*.json")}
    return {(body["group"], body["kind"]): path for path, body in bodies.items()}


def _custom(path: Path, version: str) -> Draft202012Validator | None:
    body = json.loads(path.read_text(encoding="utf-8"))
    if version not in body["versions"]:
        return None
    schema = _closed(body["versions"][version])
    schema["$defs"] = {name: _closed(one) for name, one in body["$defs"].items()}
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def _closed(schema: Any) -> Any:
    """As a strict API server reads a structural schema: an object has the properties named and no others."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        closed["type"] = [schema["type"], "null"]
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed
