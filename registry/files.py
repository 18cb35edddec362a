"""Files that are whole or not there: written aside, then renamed.

Called wherever a process that dies, or a reader that looks in between, must never find half a file. Secrets and the
spool write theirs themselves: theirs have modes, and locks.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def replace_file(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Readers see the old content or the new one. `durable`: on the disk when it returns, whatever happens to the
    machine then. Text is UTF-8. Raises OSError; what was there before then is still there."""
    with replacing(path, durable=durable) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """The block writes the file that it is given, which takes the place of `path` when the block ends, and is removed
    when it raises."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes never share one
    _drop_left_behind(path)
    try:
        yield aside
        if durable:
            _flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        _flush(path.parent)  # the new name, too


def _drop_left_behind(path: Path) -> None:
    """What processes of this machine that were killed have written."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
