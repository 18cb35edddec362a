"""What a release says of itself: its JSON form (`release.json`), the tags on its version, and the rules it must obey.

Both stores use it, so that neither takes a release the other would refuse. Pure but for `check_folders`, which reads
the component files. Calls `registry.content` for digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from registry.content import digest_folder, digest_json
from registry.errors import ReleaseRefused
from registry.schema import ComponentRef, Release

APP_NAME = re.compile(r"[a-z][a-z0-9-]{1,62}")
DIGEST = re.compile(r"[0-9a-f]{64}")
# A URL gives these a meaning of their own: a file named with one would be stored under another name.
UNSAFE_IN_PATHS = frozenset("#?%\\")

TAG_RELEASE = "palate.release_digest"
TAG_MANIFEST = "palate.manifest_digest"
TAG_ITEMS_SEQ = "palate.items_seq"


def release_digest(spec: Mapping[str, Any], components: tuple[ComponentRef, ...]) -> str:
    """The digest of a release: over its app spec and the digest of each named component, in any order."""
    return digest_json({"spec": spec, "components": {c.name: c.digest for c in components}})


def to_json(release: Release) -> dict[str, Any]:
    """The release as plain JSON values; `from_json` is its inverse."""
    return {
        "app": release.app,
        "spec": dict(release.spec),
        "components": [asdict(replace(c, needs=dict(c.needs))) for c in release.components],
        "items_seq": release.items_seq,
        "digest": release.digest,
        "metrics": dict(release.metrics),
        "lineage": dict(release.lineage),
    }


def from_json(value: Mapping[str, Any]) -> Release:
    """Raises ReleaseRefused when a field is missing or unknown."""
    try:
        components = tuple(ComponentRef(**c) for c in value["components"])
        return Release(**{**value, "components": components})
    except (KeyError, TypeError) as error:
        raise ReleaseRefused(f"the release cannot be read ({error}): publish it again with this version") from None


def version_tags(release: Release) -> dict[str, str]:
    """The tags that a version carries from the moment it exists, so that it can be found and checked."""
    return {
        TAG_RELEASE: release.digest,
        TAG_MANIFEST: digest_json(to_json(release)),
        TAG_ITEMS_SEQ: str(release.items_seq),
    }


def check_release(release: Release) -> None:
    """Raises ReleaseRefused that names the component and rule broken: names, digests, `needs`, fingerprints."""
    if not APP_NAME.fullmatch(release.app):
        raise ReleaseRefused(f"{release.app!r} is not an app name: use a-z, 0-9 and -, starting with a letter")
    names = [c.name for c in release.components]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ReleaseRefused(f"component names {repeated} stand more than once: give each its own name")
    for digest, what in [(release.digest, "the release"), *((c.digest, c.name) for c in release.components)]:
        if not DIGEST.fullmatch(digest):
            raise ReleaseRefused(f"digest {digest!r} of {what} is not a SHA-256 in hex: see registry.content")
    for component in release.components:
        _check_needs(release, component)


def _check_needs(release: Release, component: ComponentRef) -> None:
    needed = []
    for name, digest in component.needs.items():
        try:
            needed.append(release.component(name))
        except KeyError as error:
            raise ReleaseRefused(f"{component.name} needs {name}: {error.args[0]}") from None
        if needed[-1].digest != digest:
            raise ReleaseRefused(
                f"{component.name} was built for {name} {digest[:12]}, but this release has {needed[-1].digest[:12]}: "
                f"rebuild {component.name}"
            )
    if component.role != "index":
        return
    embedders = [c for c in needed if c.role == "embedder"]
    if not embedders:
        raise ReleaseRefused(f"index {component.name} names no embedder in `needs`: record the one that built it")
    for embedder in embedders:
        if embedder.fingerprint != component.fingerprint:
            raise ReleaseRefused(
                f"index {component.name} was built by an embedder with fingerprint {component.fingerprint!r}, but "
                f"{embedder.name} has {embedder.fingerprint!r}: rebuild the index"
            )


def check_folders(release: Release, folders: Mapping[str, Path]) -> None:
    """Raises ReleaseRefused when a folder's files are not what its component's digest says. Components without a
    folder are not checked here: the store knows whether it holds them."""
    for component in {c.digest: c for c in release.components}.values():
        folder = folders.get(component.digest)
        if folder is None:
            continue
        unsafe = [p.name for p in folder.rglob("*") if UNSAFE_IN_PATHS & set(p.name)]
        if unsafe:
            raise ReleaseRefused(f"{component.name}: rename {unsafe}, file names may not hold any of # ? % \\")
        try:
            digest, size_bytes = digest_folder(folder)
        except ValueError as error:
            raise ReleaseRefused(f"{component.name}: {error}") from None
        if (digest, size_bytes) != (component.digest, component.size_bytes):
            raise ReleaseRefused(
                f"{component.name}: {folder} holds {size_bytes} bytes with digest {digest[:12]}, but the release says "
                f"{component.size_bytes} with {component.digest[:12]}: build the release from the files as they are"
            )


def missing_folder(component: ComponentRef) -> ReleaseRefused:
    return ReleaseRefused(
        f"{component.name} ({component.digest[:12]}) is not stored yet and no folder was given for it: pass one"
    )


def check_same(stored: Release, release: Release) -> None:
    """Raises ReleaseRefused when two releases share a digest but not their contents."""
    parts = {c.name: c.digest for c in release.components}
    if digest_json(stored.spec) != digest_json(release.spec) or {c.name: c.digest for c in stored.components} != parts:
        raise ReleaseRefused(
            f"release digest {release.digest[:12]} already names another release of {release.app}: "
            "compute it with registry.manifest.release_digest"
        )
