"""Where releases live. Two adapters, `MlflowStore` and `MemoryStore`, pass one contract suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from registry.schema import ComponentRef, Release, ReleaseVersion


class ReleaseStore(Protocol):
    """Every method raises RegistryUnavailable when the store cannot be reached; nothing is half done then."""

    def publish(self, release: Release, folders: Mapping[str, Path]) -> ReleaseVersion:
        """Register a release. `folders` maps each component's digest to the folder that holds its files.

        A component whose digest is stored already is shared, not copied. Raises ReleaseRefused when a digest does not
        match its folder, or a `needs` does not match the release's own components. Publishing the same release digest
        again returns the version there is.
        """

    def get(self, app: str, version_or_alias: int | str) -> ReleaseVersion:
        """Raises ReleaseNotFound."""

    def versions(self, app: str) -> list[ReleaseVersion]:
        """Newest first; [] for an app that has none."""

    def fetch(self, component: ComponentRef, into: Path) -> Path:
        """The component's files in the folder `into/<digest>`, verified. Raises ReleaseRefused if they were altered."""

    def set_alias(self, app: str, alias: str, version: int) -> None: ...

    def delete_alias(self, app: str, alias: str) -> None: ...

    def set_tags(self, app: str, version: int, tags: Mapping[str, str]) -> None: ...
