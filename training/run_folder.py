"""The folder of one training run: what its steps made, and which of them are done, so that a killed run goes on.

A step is done once its record is: a JSON file that names what it made, written whole and flushed. What a step that was
killed left behind is removed before it is done again; a trainer's checkpoints lie beside, and stay. Made and
used by `training.run`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from registry.files import replace_file
from training.runs import RunBusy

LOCK_FILE, MLFLOW_FILE = ".lock", "mlflow.json"
KEPT = frozenset({LOCK_FILE, MLFLOW_FILE})


class RunFolder:
    """`home/training/APP/RUN`."""

    def __init__(self, home: Path, app: str, run_id: int) -> None:
        self.path = home / "training" / app / f"run-{run_id}"
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time, also where the lease of a stalled one ran out. Raises RunBusy."""
        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunBusy(f"a process that lost its lease still works in {self.path}: end it, then try again") from None
        try:
            yield
        finally:
            lock.release()

    def done(self, step: str) -> Any | None:
        """What the step told when it was done; None: it is not. A record that cannot be read counts as none."""
        try:
            return json.loads(self._record(step).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def once(self, step: str, make: Callable[[Path], Any]) -> Any:
        """`make` gets an empty folder for what it makes and returns JSON; not called again once it returned."""
        told = self.done(step)
        if told is None:
            folder = self.at(step)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            told = make(folder)
            self._write(step, told)
        return told

    def forget(self, *steps: str) -> None:
        """They are not done."""
        for step in steps:
            self._record(step).unlink(missing_ok=True)

    def clear(self) -> None:
        """Nothing of it is done, and nothing that it made is left; its run in MLflow stays the same."""
        for path in self.path.iterdir():
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def at(self, step: str) -> Path:
        return self.path / step

    def _record(self, step: str) -> Path:
        return self.path / f"{step}.done.json"

    def _write(self, step: str, told: Any) -> None:
        replace_file(self._record(step), json.dumps(told, ensure_ascii=False), durable=True)


def clean_up(home: Path, app: str, keep: Collection[int]) -> list[int]:
    """Remove the folders of all runs but those in `keep`; the runs whose folders went. Pseudonyms of people stand in
    them: they live no longer than somebody needs them."""
    gone = []
    for folder in sorted((home / "training" / app).glob("run-*")):
        number = folder.name.removeprefix("run-")
        if number.isdigit() and int(number) not in keep:
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(int(number))
    return gone
