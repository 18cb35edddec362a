"""The lines behind a name in app.yaml: a file beside it, or a script that prints them.

Frozen evaluation sets (`training.cases`) and extra examples (`training.dataset.extra`) are read through it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from training.errors import TrainingError

SCRIPT_LIMIT_S = 600.0


@contextmanager
def open_source(
    source: str, folder: Path, what: str, refused: type[TrainingError], limit_s: float = SCRIPT_LIMIT_S
) -> Iterator[BinaryIO]:
    """The bytes of `source`, relative to `folder`: a JSON-lines file, or what a Python script prints, given its
    arguments. A script runs in its own folder for at most `limit_s` seconds; its output lies on the disk.

    Raises `refused`, in which `what` ("evaluation", ...) says what was looked for.
    """
    try:
        parts = shlex.split(source)
    except ValueError as error:
        raise refused(f"the {what} source {source!r} cannot be read: {error}") from None
    if not parts:
        raise refused(f"the {what} source is empty: name a .jsonl file or a .py script")
    file = folder / parts[0]
    if not file.is_file():
        raise refused(f"there is no {what} source {file}")
    if file.suffix == ".py":
        with tempfile.TemporaryFile() as output:
            _run_script(file.resolve(), parts[1:], output, refused, limit_s)
            output.seek(0)
            yield output
        return
    if len(parts) > 1:
        raise refused(f"{source!r}: only a .py script takes arguments")
    with file.open("rb") as stream:
        yield stream


def _run_script(
    file: Path, arguments: Sequence[str], output: BinaryIO, refused: type[TrainingError], limit_s: float
) -> None:
    command = [sys.executable, file.name, *arguments]
    try:
        done = subprocess.run(
            command, cwd=file.parent, stdout=output, stderr=subprocess.PIPE, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise refused(f"{file} was still running after {limit_s:g} s and was stopped") from None
    if done.returncode != 0:
        raise refused(f"{file} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:].strip()}")
