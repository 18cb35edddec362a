"""`MemoryStore`: releases in this process's memory, for tests and for trying things out. Nothing survives it.

Passes the contract suite of `MlflowStore`; called wherever a `registry.ports.ReleaseStore` is wanted without a server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from registry.component_cache import ComponentCache
from registry.errors import ReleaseNotFound
from registry.manifest import TAG_RELEASE, check_folders, check_release, check_same, missing_folder, version_tags
from registry.schema import ComponentRef, Release, ReleaseVersion


@dataclass
class _App:
    versions: dict[int, ReleaseVersion] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)


class MemoryStore:
    """`files` holds each component's files by digest and relative path."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self._apps: dict[str, _App] = {}
        self._cache = ComponentCache()
        self._lock = threading.RLock()
        self._now = now

    def publish(self, release: Release, folders: Mapping[str, Path]) -> ReleaseVersion:
        check_release(release)
        check_folders(release, folders)
        with self._lock:
            for component in release.components:
                if component.digest not in self.files:
                    if component.digest not in folders:
                        raise missing_folder(component)
                    self.files[component.digest] = _read(folders[component.digest])
            app = self._apps.setdefault(release.app, _App())
            for version, stored in app.versions.items():
                if stored.tags[TAG_RELEASE] == release.digest:
                    check_same(stored.release, release)
                    return self.get(release.app, version)
            version = len(app.versions) + 1
            app.versions[version] = ReleaseVersion(version, release, tags=version_tags(release), created_s=self._now())
            return self.get(release.app, version)

    def get(self, app: str, version_or_alias: int | str) -> ReleaseVersion:
        with self._lock:
            state = self._app(app)
            version = version_or_alias
            if isinstance(version, str):
                if version not in state.aliases:
                    raise ReleaseNotFound(f"{app} has no alias {version!r}; it has {sorted(state.aliases)}")
                version = state.aliases[version]
            aliases = frozenset(a for a, v in state.aliases.items() if v == version)
            return replace(self._version(app, version), aliases=aliases)

    def versions(self, app: str) -> list[ReleaseVersion]:
        with self._lock:
            return [self.get(app, v) for v in sorted(self._apps.get(app, _App()).versions, reverse=True)]

    def fetch(self, component: ComponentRef, into: Path) -> Path:
        return self._cache.fetch(component, into, lambda folder: self._write(component, folder))

    def aliases(self, app: str) -> dict[str, int]:
        with self._lock:
            return dict(self._apps.get(app, _App()).aliases)

    def set_alias(self, app: str, alias: str, version: int) -> None:
        with self._lock:
            self._version(app, version)
            self._apps[app].aliases[alias] = version

    def delete_alias(self, app: str, alias: str) -> None:
        with self._lock:
            self._app(app).aliases.pop(alias, None)

    def set_tags(self, app: str, version: int, tags: Mapping[str, str]) -> None:
        with self._lock:
            stored = self._version(app, version)
            self._apps[app].versions[version] = replace(stored, tags={**stored.tags, **tags})

    def _app(self, app: str) -> _App:
        if app not in self._apps:
            raise ReleaseNotFound(f"no release of {app!r} was ever published; there are {sorted(self._apps)}")
        return self._apps[app]

    def _version(self, app: str, version: int) -> ReleaseVersion:
        versions = self._app(app).versions
        if version not in versions:
            raise ReleaseNotFound(f"{app} has no version {version}; it has {sorted(versions)}")
        return versions[version]

    def _write(self, component: ComponentRef, folder: Path) -> None:
        if component.digest not in self.files:
            raise ReleaseNotFound(f"no files are stored for {component.name} ({component.digest[:12]})")
        for name, content in self.files[component.digest].items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
