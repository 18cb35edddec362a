"""A release and its components: immutable, by content hash.

No ray, torch, mlflow or database here: serving, training and the pure rollout logic all import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["catalogue", "rules", "lexical", "embedder", "index", "ranker", "adapter",
               "lexicon", "funnel", "cross_encoder", "prompt"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComponentRef:
    """One component of a release. `name` is its place in the app ("retrieve.dense"), `digest` the SHA-256 over
    its files (see `registry.content`), `needs` the digests of components whose fingerprint it was built for."""

    name: str
    role: Role
    digest: str
    size_bytes: int
    fingerprint: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Release:
    """What is published. `spec` is the app spec it was built for, as plain JSON; `items_seq` the catalogue's sequence
    number its index holds. `digest` is over spec and component digests: the same inputs give the same release."""

    app: str
    spec: Mapping[str, Any]
    components: tuple[ComponentRef, ...]
    items_seq: int
    digest: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)

    def component(self, name: str) -> ComponentRef:
        """Raises KeyError with the names there are."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(f"release of {self.app} has no component {name!r}; it has {[c.name for c in self.components]}")


@dataclass(frozen=True, slots=True)
class ReleaseVersion:
    """A published release: one version of the registered model named after the app."""

    version: int
    release: Release
    aliases: frozenset[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=dict)
    created_s: float = 0.0


def version_or_alias(text: str) -> int | str:
    """What a person typed: a version's number, or the name of an alias."""
    return int(text) if text.isdecimal() else text
