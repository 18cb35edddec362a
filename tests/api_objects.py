"""What the API server of the tests does to objects: schemas of CRDs, with pruning, and patches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft4Validator

Object = dict[str, Any]


class Refusal(Exception):
    """An answer that is a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True)
class Schema:
    """Of one version of a CRD; `whole` holds the parts that it refers to under `$defs`."""

    root: Object
    whole: Object

    @classmethod
    def of(cls, crd: Object, version: str) -> Schema:
        return cls(crd["versions"][version], {"$defs": _as_json_schema(crd["$defs"])})

    def check(self, checked: Object, strict: bool) -> None:
        """Drops what the schema does not know, or refuses it. Raises Refusal."""
        unknown: list[str] = []
        parts = [part for part in ("spec", "status") if part in checked]
        for part in parts:
            self._prune(checked[part], self.root["properties"][part], part, unknown)
        if unknown and strict:
            raise Refusal(400, "BadRequest", f'strict decoding error: unknown field "{unknown[0]}"')
        for part in parts:
            schema = {**_as_json_schema(self.root["properties"][part]), **self.whole}
            for error in Draft4Validator(schema).iter_errors(checked[part]):
                path = ".".join([part, *(str(step) for step in error.path)])
                raise Refusal(422, "Invalid", f"{path}: Invalid value: {error.message}")

    def _prune(self, value: Any, schema: Object, path: str, unknown: list[str]) -> None:
        if "$ref" in schema:
            schema = self.whole["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        if isinstance(value, list) and "items" in schema:
            for number, item in enumerate(value):
                self._prune(item, schema["items"], f"{path}[{number}]", unknown)
        if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
            return
        properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
        for key in list(value):
            if key in properties:
                self._prune(value[key], properties[key], f"{path}.{key}", unknown)
            elif isinstance(additional, dict):
                self._prune(value[key], additional, f"{path}.{key}", unknown)
            elif not additional:
                unknown.append(f"{path}.{key}")
                del value[key]


def _as_json_schema(schema: Any) -> Any:
    """A structural schema as JSON schema: `int-or-string` and `nullable` are Kubernetes' own."""
    if isinstance(schema, list):
        return [_as_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    said = {key: _as_json_schema(value) for key, value in schema.items()}
    if schema.get("nullable") is True and isinstance(said.get("type"), str):
        said["type"] = [said["type"], "null"]
    return said


def merged(current: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    found = dict(current) if isinstance(current, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return copy.deepcopy(found)


def json_patched(current: Object, patch: list[Object]) -> Object:
    """RFC 6902: add, replace, remove and test of members and list entries."""
    changed = copy.deepcopy(current)
    for step in patch:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        at: Any = changed
        for part in way:
            at = at[int(part)] if isinstance(at, list) else at[part]
        key: Any = int(last) if isinstance(at, list) and last != "-" else last
        if step["op"] == "test":
            if at[key] != step["value"]:
                raise Refusal(422, "Invalid", f"the server rejected our request: test of {step['path']} failed")
        elif step["op"] == "remove":
            del at[key]
        elif isinstance(at, list) and step["op"] == "add":
            at.insert(len(at) if key == "-" else key, step["value"])
        else:
            at[key] = step["value"]
    return changed
