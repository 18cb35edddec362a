"""Which vectors an app still needs: Chroma keeps a collection for each encoder that ever embedded its catalogue.

Called once a release is published, by `palate index` and by training runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from registry.errors import RegistryError
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion
from serving.components.vectors import ChromaVectors
from serving.errors import StoreUnavailable
from training.config import TrainingConfig

NEWEST = 3
"""Releases whose vectors are kept though no alias names them: the next build is most often like one of them."""

log = logging.getLogger(__name__)


def needed(app: str, versions: Iterable[ReleaseVersion]) -> set[tuple[str, str]]:
    """(collection's app, fingerprint) of every index in a release that has an alias, or is one of the newest."""
    newest = sorted(versions, key=lambda version: -version.version)
    return {
        (f"{app}.{component.name.removeprefix('retrieve.')}", component.fingerprint)
        for place, version in enumerate(newest)
        if version.aliases or place < NEWEST
        for component in version.release.components
        if component.role == "index" and component.fingerprint
    }


def drop_unused_vectors(app: str, releases: ReleaseStore, config: TrainingConfig) -> list[str]:
    """The collections that were removed. What serves does not look at them, and what a later build needs of them it
    embeds again; so where another process has Chroma, or MLflow is away, they stay until the next release."""
    url, folder = config.chroma_url, config.home / "chroma"
    if not url and not folder.exists():
        return []
    try:
        wanted = needed(app, releases.versions(app))
        with ChromaVectors(None if url else folder, url or None) as chroma:
            gone = chroma.keep(app, wanted)
    except (RegistryError, StoreUnavailable) as error:
        log.warning("unused vectors stay: %s", error)
        return []
    if gone:
        log.info("removed the vectors of encoders that no release uses: %s", ", ".join(gone))
    return gone
