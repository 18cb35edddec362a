"""Component files on this machine: fetched once, verified, shared by every process, never seen half-written.

Called by the stores' `fetch`; calls whatever brings the files (`download`) and `registry.content` to verify them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from registry.content import digest_folder
from registry.errors import RegistryUnavailable, ReleaseRefused
from registry.schema import ComponentRef

LOCK_TIMEOUT_S = 600.0


class ComponentCache:
    """Folders named by digest. A folder is verified once per process: disks decay and people edit files."""

    def __init__(self) -> None:
        self._verified: set[Path] = set()

    def fetch(self, component: ComponentRef, into: Path, download: Callable[[Path], None]) -> Path:
        """`into/<digest>`, complete and verified. `download` fills an empty folder.

        A file lock lets one process download while the others wait for it. Raises ReleaseRefused when what was
        downloaded is not what the digest says, RegistryUnavailable when another process takes too long; neither
        leaves files behind. A damaged folder is removed and fetched again.
        """
        target = into / component.digest
        if target in self._verified and target.is_dir():
            return target
        locks = into / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / component.digest, timeout=LOCK_TIMEOUT_S):
                if not (target.is_dir() and _is_sound(target, component)):
                    shutil.rmtree(target, ignore_errors=True)
                    _fetch(component, target, download)
        except Timeout:
            raise RegistryUnavailable(
                f"another process has been fetching {component.name} for {LOCK_TIMEOUT_S:.0f} s: see what it does"
            ) from None
        self._verified.add(target)
        return target


def _fetch(component: ComponentRef, target: Path, download: Callable[[Path], None]) -> None:
    # One fixed name, safe under the lock: what a killed process left is cleared by the next fetch.
    partial = target.with_name(f".partial-{component.digest}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        download(partial)
        if not _is_sound(partial, component):
            raise ReleaseRefused(
                f"the stored files of {component.name} ({component.digest[:12]}) were altered: "
                "delete them in the store and publish the release again"
            )
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_sound(folder: Path, component: ComponentRef) -> bool:
    try:
        return digest_folder(folder)[0] == component.digest
    except ValueError:
        return False
