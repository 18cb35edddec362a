"""Examples on disk between the passes over them, in buckets by query, so that memory holds one bucket at a time.

A bucket is small enough to be sorted in memory, buckets follow each other in the order of their keys, and a line begins
with its key: so the lines come back ordered by query and then by content, in whatever order they were added
(partitioning as in the Grace hash join; Kitsuregawa, Tanaka, Moto-oka 1983). Only `training.dataset.build` uses it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from training.dataset.example import Example
from training.dataset.keys import KEY_BYTES

BUCKETS = 64
KEY_CHARS = 2 * KEY_BYTES


class Group(NamedTuple):
    """Every example of one query. `key` as `query_key` made it."""

    key: bytes
    examples: list[Example]


class Stage:
    """A folder of buckets. Added to as a context, and read after it; `clear` removes it."""

    def __init__(self, folder: Path) -> None:
        """Begins empty. Raises OSError."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._files: dict[int, BinaryIO] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, key: bytes, example: Example) -> None:
        line = orjson.dumps(example, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        number = key[0] * BUCKETS // 256
        if number not in self._files:
            self._files[number] = self._path(number).open("ab", buffering=1 << 16)
        self._files[number].write(key.hex().encode() + line)

    def groups(self) -> Iterator[Group]:
        """In the order of the keys; a group's examples in the order of their content."""
        for number in sorted(self._files):
            with self._path(number).open("rb") as file:
                yield from _groups(sorted(file))

    def as_added(self) -> Iterator[Group]:
        """For a stage that got one group after the other in the order of the keys: just so."""
        for number in sorted(self._files):
            with self._path(number).open("rb") as file:
                yield from _groups(file)

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:02}"


def _groups(lines: Iterable[bytes]) -> Iterator[Group]:
    for key, of_query in groupby(lines, key=_key):
        yield Group(bytes.fromhex(key.decode()), [Example(**orjson.loads(one[KEY_CHARS:])) for one in of_query])


def _key(line: bytes) -> bytes:
    return line[:KEY_CHARS]


def write_groups(stage: Stage, groups: Iterable[Group]) -> None:
    with stage:
        for group in groups:
            for example in group.examples:
                stage.add(group.key, example)
