"""A release from another one: the same components under a changed app spec, so nothing is built.

For thresholds, weights, options and rollout plans, and for drills. Pure; `palate derive` and the benchmarks call it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from registry.errors import ReleaseRefused
from registry.manifest import release_digest
from registry.schema import Release, ReleaseVersion


def changed_spec(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with each dotted key set: {"retrieve.fusion.threshold": 0.8}. Parts that are missing are made; what the
    keys mean is checked by whoever validates specs. Raises ReleaseRefused for a key that leads through a value."""
    result = copy.deepcopy(dict(spec))
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = result
        for depth, part in enumerate(parents, 1):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ReleaseRefused(f"{key}: {'.'.join(parents[:depth])} is {inner!r}, which has no parts")
        inner[last] = value
    return result


def derive(base: ReleaseVersion, spec: Mapping[str, Any]) -> Release:
    """The base's components under another spec. Metrics are left out: they were measured under the old one."""
    release = base.release
    lineage = {**release.lineage, "derived_from": str(base.version)}
    digest = release_digest(spec, release.components)
    return Release(release.app, spec, release.components, release.items_seq, digest, {}, lineage)
