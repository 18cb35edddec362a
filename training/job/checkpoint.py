"""Checkpoints on disk: each is complete or absent, whatever kills the process that writes it.

Written by rank 0 of a job through `training.job.loop`, read by every worker of the next attempt. A checkpoint is
written into a folder of its own, flushed to the disk and renamed; its marker names the task, the number of workers and
the digest of its files, so that a damaged one, or one of another task, is never continued from.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry.content import digest_folder
from training.errors import TrainingRefused

FULL_BELOW_BYTES = 4 * 2**20
"""Less free space than this after a failed write: the disk is full, however the writer's library puts it."""
MARKER = "checkpoint.json"
FILES = "files"
PARTIAL = ".partial-"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`folder` holds what the trainer wrote after `step` optimiser steps."""

    step: int
    folder: Path


class Checkpoints:
    """Those of one task (`digest`) on `world` workers. One writer at a time; any number of readers."""

    def __init__(self, root: Path, digest: str, world: int, keep: int = 2) -> None:
        self._root = root
        self._digest = digest
        self._world = world
        self._keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Checkpoint:
        """`write` gets an empty folder. What it raises is raised; nothing of the attempt is then left, and the older
        checkpoints are. Raises TrainingRefused when the disk is full."""
        partial = self._root / f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for left in self._root.glob(f"{PARTIAL}*"):  # of a writer that was killed
                shutil.rmtree(left, ignore_errors=True)
            (partial / FILES).mkdir(parents=True)
            write(partial / FILES)
            digest, size_bytes = digest_folder(partial / FILES)
            marker = {"step": step, "task": self._digest, "world": self._world, "files": digest, "bytes": size_bytes}
            (partial / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            _flush(partial)
            self._publish(partial, self._at(step))
        except BaseException as error:
            full = _says_full(error) or _free_bytes(self._root) < FULL_BELOW_BYTES
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise TrainingRefused(
                    f"the disk of {self._root} is full: the checkpoint of step {step} was not kept, the one before it "
                    "was. Free some space and run the same command again; it goes on from there"
                ) from error
            raise
        self._drop_old(step)
        return Checkpoint(step, self._at(step) / FILES)

    def newest(self) -> Checkpoint | None:
        """The newest one that is whole and of this task; what is passed over is logged."""
        for step in sorted(self._steps(), reverse=True):
            if (fault := self._fault(step)) is None:
                return Checkpoint(step, self._at(step) / FILES)
            log.warning("checkpoint %s is not used: %s", self._at(step), fault)
        return None

    def at(self, step: int) -> Checkpoint:
        """The one of `step`, which another worker has found whole. Raises TrainingRefused when it cannot be seen from
        here."""
        if not (self._at(step) / MARKER).is_file():
            raise TrainingRefused(
                f"a worker on another node does not see {self._at(step)}: PALATE_HOME has to be on storage that all "
                "nodes of the job share"
            )
        return Checkpoint(step, self._at(step) / FILES)

    def _fault(self, step: int) -> str | None:
        """Why the checkpoint of `step` cannot be used."""
        try:
            marker = json.loads((self._at(step) / MARKER).read_text(encoding="utf-8"))
            if marker["task"] != self._digest:
                return "it is of another task (other data, options or seed)"
            if marker["world"] != self._world:
                return f"it is of {marker['world']} workers, and now there are {self._world}"
            if marker["step"] != step or digest_folder(self._at(step) / FILES)[0] != marker["files"]:
                return "its files are damaged"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"it is damaged ({error})"
        return None

    def _publish(self, partial: Path, final: Path) -> None:
        if final.exists():  # a damaged one, or one that was passed over: between the two renames it is absent
            aside = self._root / f"{PARTIAL}{uuid.uuid4().hex}"
            final.rename(aside)
            partial.rename(final)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            partial.rename(final)
        _flush_entry(self._root)

    def _drop_old(self, newest: int) -> None:
        """Those of another task go too: this one has a checkpoint of its own now."""
        own = []
        for step in self._steps():
            try:
                marker = json.loads((self._at(step) / MARKER).read_text(encoding="utf-8"))
                mine = (marker["task"], marker["world"]) == (self._digest, self._world) and step <= newest
            except (OSError, ValueError, KeyError, TypeError):
                mine = False
            if mine:
                own.append(step)
            else:
                shutil.rmtree(self._at(step), ignore_errors=True)
        for step in sorted(own)[: -self._keep]:
            shutil.rmtree(self._at(step), ignore_errors=True)

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("step-") for path in self._root.glob("step-*"))
        return [int(name) for name in names if name.isdigit()]

    def _at(self, step: int) -> Path:
        return self._root / f"step-{step:09d}"


def _flush(folder: Path) -> None:
    """Contents before names, so that no name can outlive a power cut without its content."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
