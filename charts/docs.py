"""Makes what is derived from `charts/palate/values.yaml`: values.schema.json and the table of values in README.md.

`scripts/chart-docs` runs it; `--check` says only whether both are up to date, and tests/chart does the same.

In values.yaml the comment above a key is its description. A line in it that starts with `@` is JSON schema for the key,
with two words of our own: `each` names another key whose entries every entry of this map may have, `kubernetes` names
the kind of a Kubernetes object that stands here (left to the API server). All else follows from the default: a map
takes the keys it has and no others, a list has to say what it lists.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "palate"
VALUES, SCHEMA, README = CHART / "values.yaml", CHART / "values.schema.json", CHART / "README.md"
BEGIN, END = "<!-- values: made by scripts/chart-docs -->", "<!-- end of values -->"
TYPES: Mapping[type, str] = {bool: "boolean", int: "number", float: "number", str: "string"}


class Undocumented(ValueError):
    """A key of values.yaml lacks its comment, or its schema cannot be told."""


@dataclass
class Value:
    """One key: dotted `path`, its comment, its own schema words, its default, and the keys in it."""

    path: str
    text: str
    hint: dict[str, Any]
    default: Any
    children: dict[str, Value] = field(default_factory=dict)

    @property
    def leaf(self) -> bool:
        return (
            not self.children or "each" in self.hint or "kubernetes" in self.hint or "additionalProperties" in self.hint
        )


def read_values(text: str) -> dict[str, Value]:
    """Raises Undocumented."""
    lines = text.splitlines()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return dict(_children(root, "", lines))


def _children(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, Value]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        text, hint = _comment(lines, key.start_mark.line, key.start_mark.column, path)
        found = Value(path, text, hint, yaml.safe_load(yaml.serialize(value)))
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style and not found.hint.keys() & {
            "each", "kubernetes", "additionalProperties"
        }  # fmt: skip
        if nested:
            found.children = dict(_children(value, f"{path}.", lines))
        yield key.value, found


def _comment(lines: list[str], line: int, column: int, path: str) -> tuple[str, dict[str, Any]]:
    """The comment lines right above, and the schema words among them."""
    above: list[str] = []
    mark = " " * column + "# "
    while line > 0 and lines[line - 1].startswith(mark):
        line -= 1
        above.insert(0, lines[line].strip()[2:])
    hint: dict[str, Any] = {}
    for one in above:
        if one.startswith("@"):
            hint |= json.loads(one[1:])
    text = " ".join(one for one in above if not one.startswith("@"))
    if not text:
        raise Undocumented(f"values.yaml: {path} has no comment above it")
    return text, hint


def schema_of(values: Mapping[str, Value]) -> dict[str, Any]:
    """JSON schema of the whole file. Raises Undocumented."""
    every = {value.path: value for value in flat(values)}
    body = _object(values, every)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart palate", **body}


def flat(values: Mapping[str, Value]) -> Iterator[Value]:
    for value in values.values():
        yield value
        yield from flat(value.children)


def _object(values: Mapping[str, Value], every: Mapping[str, Value]) -> dict[str, Any]:
    # Helm puts `global` into the values of every chart
    properties = {name: _schema(value, every) for name, value in values.items()}
    if any("." not in value.path for value in values.values()):
        properties["global"] = {"type": "object"}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(value: Value, every: Mapping[str, Value]) -> dict[str, Any]:
    described = {"description": value.text}
    hint = {name: word for name, word in value.hint.items() if name not in ("each", "kubernetes")}
    if "each" in value.hint:
        entry = _object(every[value.hint["each"]].children, every)
        # `name:` with nothing behind it takes all the defaults
        return {**described, "type": "object", "additionalProperties": {**entry, "type": ["object", "null"]}}
    if "kubernetes" in value.hint:
        return {**described, "type": "object"}
    if value.children:
        return {**described, **_object(value.children, every)}
    if isinstance(value.default, list):
        if "items" not in hint:
            raise Undocumented(f"values.yaml: {value.path} is a list and does not say of what: add `# @{{...}}`")
        items = hint["items"]
        hint["items"] = {"type": "object"} if "kubernetes" in items else items
        return {**described, "type": "array", **hint}
    if isinstance(value.default, dict):
        if "additionalProperties" not in hint:
            raise Undocumented(f"values.yaml: {value.path} is a map and does not say of what: add `# @{{...}}`")
        return {**described, "type": "object", **hint}
    if type(value.default) not in TYPES:
        raise Undocumented(f"values.yaml: {value.path} has no default: give one, so that its type is known")
    kind = "integer" if type(value.default) is int else TYPES[type(value.default)]
    return {**described, "type": kind, **hint}


def table_of(values: Mapping[str, Value]) -> str:
    """Markdown, one row a key that takes a value."""
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for value in flat(values):
        if not value.leaf:
            rows.append(f"| **`{value.path}`** | | {value.text} |")
            continue
        default = json.dumps(value.default, ensure_ascii=False)
        rows.append(f"| `{value.path}` | `{default}` | {value.text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def rendered(values_text: str, readme: str) -> tuple[str, str]:
    """(values.schema.json, README.md) as they should be. Raises Undocumented."""
    values = read_values(values_text)
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    schema = json.dumps(schema_of(values), indent=1, ensure_ascii=False) + "\n"
    return schema, f"{before}{BEGIN}\n{table_of(values)}\n{END}{after}"


def main(arguments: list[str]) -> int:
    schema, readme = rendered(VALUES.read_text(encoding="utf-8"), README.read_text(encoding="utf-8"))
    stale = [path for path, text in ((SCHEMA, schema), (README, readme)) if not _is(path, text)]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.name} is not what values.yaml says: run scripts/chart-docs", file=sys.stderr)
        return 1 if stale else 0
    SCHEMA.write_text(schema, encoding="utf-8")
    README.write_text(readme, encoding="utf-8")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
