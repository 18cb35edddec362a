"""The output file of a batch: lines that are only ever appended to, by one process at a time.

First comes a line that says what made it (`about`), then one for each input, in the order of the inputs: `{"id", "of",
...}`, `of` being a digest of the input. So how far a job came is the number of complete lines: a run that was killed is
gone on with by starting it again. The half line that it may have left is cut off, and what is there is compared with
the input before anything is added. `training.batch.run` writes such files; `read_lines` reads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from training.errors import BatchStopped

SYNC_LINES, SYNC_S = 2000, 1.0
READ_BYTES = 1 << 20
About = Mapping[str, Any]
"""`{"format", "form", "by", "fingerprint"}`: two jobs whose `about` is equal may continue each other's file."""


class Entry(NamedTuple):
    """One input. Ids need not differ, but with their contents they have to come in the same order in every run. `known`
    are the fields of its line where they are known already."""

    id: str
    content: str
    known: Mapping[str, Any] | None = None


def digest_of(content: str) -> str:
    """16 hex digits that tell whether an input is the one that was read."""
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Writer:
    """Appends lines. A process that is killed loses none of them; of a machine that is, what has been on its way for
    SYNC_S or SYNC_LINES is on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting = 0
        self._last = time.monotonic()

    def add(self, entry: Entry, fields: Mapping[str, Any]) -> None:
        self._file.write(orjson.dumps({"id": entry.id, "of": digest_of(entry.content), **fields}) + b"\n")
        self._file.flush()
        self._waiting += 1
        if self._waiting >= SYNC_LINES or time.monotonic() - self._last >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._waiting = 0
        self._last = time.monotonic()


@contextmanager
def locked(out: Path) -> Iterator[BinaryIO]:
    """The file for reading and appending, by one process at a time. Raises BatchStopped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchStopped(f"another process is writing {out}: wait for it, or stop it") from None
        yield file


def begin(file: BinaryIO, out: Path, about: About, restart: bool) -> None:
    """Cut off a half line; write the first line, or compare it. `restart` keeps what there was as `.previous`. Raises
    BatchStopped where something else made the file."""
    _cut_half_line(file)
    file.seek(0)
    first = file.readline()
    if first:
        made = _parse_about(first, out)
        if made == about and not restart:
            return
        if not restart:
            raise BatchStopped(
                f"{out} was made by {_named(made)}, this run is {_named(about)}: begin anew with --restart (the old "
                "file is kept as .previous), or write to another file"
            )
        _copy(file, out.with_name(f"{out.name}.previous"))
    file.truncate(0)
    file.write(orjson.dumps({"about": about}) + b"\n")
    file.flush()
    os.fsync(file.fileno())


def skip_done(file: BinaryIO, out: Path, source: Iterator[Entry]) -> int:
    """Move `source` past what is done; returns how many lines that are. Raises BatchStopped for other inputs."""
    file.seek(0)
    done = 0
    for number, line in enumerate(file, 1):
        if number == 1:
            continue
        made, entry = _parse(line, out, number), next(source, None)
        if entry is None or made["id"] != entry.id or made["of"] != digest_of(entry.content):
            raise BatchStopped(
                f"{out}, line {number} is of {made['id']}, but the input there is "
                f"{entry.id if entry else 'at its end'} or has another text: the file was made of other inputs; "
                "write to another file"
            )
        done += 1
    return done


def read_lines(out: Path) -> Iterator[dict[str, Any]]:
    """`{"id", "of", ...}` a line, in the order of the inputs; a half line at the end is left out. Raises BatchStopped
    for a file that is none."""
    with out.open("rb") as file:
        _parse_about(file.readline(), out)
        for number, line in enumerate(file, 2):
            if line.endswith(b"\n"):
                yield _parse(line, out, number)


def _cut_half_line(file: BinaryIO) -> None:
    """A run that was killed may leave a last line without its end."""
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep:
        start = max(0, keep - READ_BYTES)
        file.seek(start)
        at = file.read(keep - start).rfind(b"\n")
        if at >= 0:
            keep = start + at + 1
            break
        keep = start
    if keep < end:
        file.truncate(keep)


def _copy(file: BinaryIO, to: Path) -> None:
    """The old file by its content: its name stays with the lock."""
    file.seek(0)
    with to.open("wb") as kept:
        while part := file.read(READ_BYTES):
            kept.write(part)
        os.fsync(kept.fileno())


def _named(about: About) -> str:
    by = about["by"]
    return f"{by.get('model', by.get('engine'))} with the form {about['form']} {about['fingerprint'][:12]}"


def _parse_about(line: bytes, out: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = orjson.loads(line)["about"]
        _named(about)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise BatchStopped(f"{out} is no file of a batch: its first line does not say what made it") from None
    return about


def _parse(line: bytes, out: Path, number: int) -> dict[str, Any]:
    try:
        made: dict[str, Any] = orjson.loads(line)
        made["id"], made["of"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise BatchStopped(f"{out}, line {number} is no line of a batch: the file is damaged") from None
    return made
