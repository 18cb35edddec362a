"""Fills an app's empty catalogue from the source that its app.yaml names: a JSON-lines file, or a script that prints
JSON lines.

Called by whatever builds on a catalogue: `palate up` and `palate index`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from serving.components.catalogue import check_item
from serving.errors import BadRequest
from serving.ports import ItemStore
from serving.schema import AppSpec, Item

BATCH = 2000


def seed_items(spec: AppSpec, folder: Path, store: ItemStore, say: Callable[[str], None]) -> None:
    """Does nothing when the catalogue has ever been written, or app.yaml names no source: then it is filled over HTTP.
    Raises BadRequest that names source and line."""
    if spec.items.source is None or store.sequence(spec.name):
        return
    say(f"{spec.name}: loading its catalogue from {spec.items.source}")
    count = 0
    items = read_items(spec, folder)
    while batch := list(islice(items, BATCH)):
        store.upsert(spec.name, batch)
        count += len(batch)
    say(f"{spec.name}: {count:,} items")


def read_items(spec: AppSpec, folder: Path) -> Iterator[Item]:
    """The items of `items.source`, checked against app.yaml. Raises BadRequest that names source and line."""
    assert spec.items.source is not None
    command = shlex.split(spec.items.source)
    source = folder / command[0]
    if not source.exists():
        raise BadRequest(f"{spec.name}: items.source is {command[0]!r}, but there is no {source}", field="items.source")
    lines = _script_lines(source, command[1:]) if source.suffix == ".py" else _file_lines(source)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield parse_item(line, spec, f"{source.name}, line {number}")


def parse_item(line: bytes, spec: AppSpec, where: str) -> Item:
    """One JSON line as an item. Raises BadRequest that names the place."""
    try:
        raw: Any = orjson.loads(line)
        item = Item(str(raw["id"]), dict(raw["fields"]), dict(raw.get("attributes", {})))
        check_item(item, spec)
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(f"{where}: not an item {{id, fields, attributes}}: {error!r}", field="items") from None
    except BadRequest as error:
        raise BadRequest(f"{where}: {error.detail}", field="items") from None
    return item


def _file_lines(source: Path) -> Iterator[bytes]:
    with source.open("rb") as stream:
        yield from stream


def _script_lines(source: Path, arguments: list[str]) -> Iterator[bytes]:
    command = [sys.executable, str(source.resolve()), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=source.parent) as process:
        assert process.stdout is not None
        yield from process.stdout
        status = process.wait()
    if status:
        raise BadRequest(f"{source.name} ended with status {status}; the lines above say why", field="items.source")
