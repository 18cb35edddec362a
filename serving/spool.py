"""A folder of JSON lines on the local disk that outlives the process: where feedback waits while the database is away.

Each process appends to a file of its own, which it holds locked (flock) as long as it lives. A file whose lock is free
belongs to a process that died: whoever locks it next owns its lines. `serving.feedback` fills and replays it,
`serving.store.people` takes out who is to be forgotten.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIX = ".jsonl"
DAMAGED = ".damaged"


class SpoolFile:
    """An open, locked file. `pending` counts its lines."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.pending = 0
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path) -> SpoolFile:
        """A new file of this process. Raises OSError."""
        while True:
            # Named so that files sort by age
            path = folder / f"{time.time_ns():020}-{uuid.uuid4().hex}{SUFFIX}"
            file = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600))
            # Between create and lock another process may have taken it for an orphan, found it empty and removed it
            try:
                if file._lock() and file._is_at_path():
                    sync_folder(folder)
                    return file
            except OSError:
                file.close()
                raise
            file.close()

    @classmethod
    def adopt(cls, path: Path) -> SpoolFile | None:
        """The file of a process that died; None when its process lives, or another took it. Raises OSError."""
        try:
            file = cls(path, os.open(path, os.O_RDWR | os.O_APPEND))
        except FileNotFoundError:
            return None
        if file._lock() and file._is_at_path():
            file.pending = sum(1 for _ in file.lines())
            return file
        file.close()
        return None

    def append(self, line: bytes) -> None:
        """Durable when it returns. Raises OSError; the line is not in the file then, unless undoing it failed too,
        and then `Unusable` is raised: no line may follow."""
        end = os.fstat(self._descriptor).st_size
        try:
            self._write(line + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            try:
                # A full disk may have taken half of the line
                os.ftruncate(self._descriptor, end)
                os.fsync(self._descriptor)
            except OSError as second:
                raise Unusable(str(second)) from error
            raise
        self.pending += 1

    def lines(self) -> Iterator[bytes]:
        """The lines in order, without a torn one at the end: it was never acknowledged."""
        with self.path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield line[:-1]

    def remove(self, *, damaged: bool = False) -> None:
        """Done with it; a damaged one is kept aside for a person to look at."""
        if damaged:
            self.path.replace(self.path.with_suffix(DAMAGED))
        else:
            self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        self.close()

    def replace(self, lines: Iterable[bytes]) -> None:
        """Write another file in its place, whole or not at all, and let go of it. Raises OSError."""
        temporary = self.path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.writelines(line + b"\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)
        self.close()

    def close(self) -> None:
        """Let go of the lock; the file stays for whoever adopts it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False


class Unusable(OSError):
    """The file may end in half a line that could not be taken back."""


class Spool:
    """The folder, with this process's file. Safe to share between threads; one thread at a time replays."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder cannot be made."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._active: SpoolFile | None = None
        self._sealed: list[SpoolFile] = []
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """Lines this process holds that were not replayed yet."""
        with self._lock:
            return sum(file.pending for file in [*self._sealed, *([self._active] if self._active else [])])

    def append(self, line: bytes) -> None:
        """Durable when it returns. `line` holds no line break. Raises OSError when it could not be kept."""
        with self._lock:
            if self._active is None:
                self._active = SpoolFile.create(self.folder)
            try:
                self._active.append(line)
            except Unusable:
                self._sealed.append(self._active)
                self._active = None
                raise

    def adopt_orphans(self) -> None:
        """Take over the files of processes that died. Raises OSError."""
        mine = {file.path for file in [*self._sealed, *([self._active] if self._active else [])]}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path not in mine and (file := SpoolFile.adopt(path)) is not None:
                with self._lock:
                    self._sealed.append(file)

    def seal(self) -> list[SpoolFile]:
        """Every file to replay, oldest first; later lines go to a new file."""
        with self._lock:
            if self._active is not None:
                self._sealed.append(self._active)
                self._active = None
            return sorted(self._sealed, key=lambda file: file.path.name)

    def done(self, file: SpoolFile, *, damaged: bool = False) -> None:
        """Every line of a sealed file is in the database. Raises OSError."""
        file.remove(damaged=damaged)
        with self._lock:
            if file in self._sealed:  # else the spool was closed meanwhile
                self._sealed.remove(file)

    def close(self) -> None:
        """Let go of all files; another process, or the next start, adopts what is left."""
        with self._lock:
            for file in [*self._sealed, *([self._active] if self._active else [])]:
                file.close()
            self._sealed = []
            self._active = None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
