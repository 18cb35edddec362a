"""The examples an app adds to what its users taught (`train.NAME.data.extra`): a file, or what a script prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.dataset.example import Example, parse_example
from training.errors import DatasetInvalid
from training.source import SCRIPT_LIMIT_S, open_source


def extra_examples(source: str, folder: Path, limit_s: float = SCRIPT_LIMIT_S) -> Iterator[Example]:
    """A line each, as `training.dataset.example.Example`; `source` is relative to `folder`. Raises DatasetInvalid that
    names source and line."""
    with open_source(source, folder, "example", DatasetInvalid, limit_s) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield parse_example(line, f"{source}, line {number}")
