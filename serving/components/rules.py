"""The rules component: what the rules engine needs beside the catalogue, as one small file.

Built when a release is built, read when it is loaded. File: `rules.json` {"format", "weights", "aliases", "options"},
the same bytes for the same content, so that its hash names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serving.errors import BadRequest

FORMAT = 1
FILE = "rules.json"


@dataclass(frozen=True, slots=True)
class Rules:
    """`weights`: field -> weight. `aliases`: canonical word -> its spellings. `options`: the engine's switches."""

    weights: Mapping[str, float]
    aliases: Mapping[str, Sequence[str]]
    options: Mapping[str, float]


def build_rules(
    folder: Path,
    aliases: Path | Mapping[str, Sequence[str]] | None,
    weights: Mapping[str, float],
    options: Mapping[str, float],
) -> None:
    """Write the component into `folder`. Raises BadRequest that names what is wrong with an alias file."""
    table = read_aliases(aliases) if isinstance(aliases, Path) else dict(aliases or {})
    content = {
        "format": FORMAT,
        "weights": {field: float(weight) for field, weight in weights.items()},
        "aliases": {canonical: list(spellings) for canonical, spellings in table.items()},
        "options": {name: float(value) for name, value in options.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def load_rules(folder: Path) -> Rules:
    """Raises BadRequest where the folder holds no rules component of this format."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"there is no {path}: build the rules component again", field=FILE) from None
    except ValueError as error:
        raise BadRequest(f"{path} is not JSON ({error}): build the rules component again", field=FILE) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadRequest(f"{path} is not of format {FORMAT}: build the rules component again", field="format")
    return Rules(content["weights"], content["aliases"], content["options"])


def read_aliases(path: Path) -> dict[str, list[str]]:
    """A YAML mapping of a canonical word to the list of its other spellings. Raises BadRequest naming the entry."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"there is no alias file {path}", field="aliases") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is not YAML: {error}", field="aliases") from None
    if not isinstance(raw, dict):
        raise BadRequest(f"{path} must map a word to the list of its spellings", field="aliases")
    for canonical, spellings in raw.items():
        if not isinstance(spellings, list) or not all(isinstance(s, str | int) for s in spellings):
            raise BadRequest(f"{path}: the spellings of {canonical!r} must be a list of words", field="aliases")
    return {str(canonical): [str(s) for s in spellings] for canonical, spellings in raw.items()}
