"""Which engines and adapters the releases in use need, and what to do about those that an engine holds. Pure:
`serving.local.engines` does it, again and again.

An adapter is served as `app@hash`, the hash of its files: another adapter is another name, so none is ever replaced in
place, and what vLLM cached of prompts under one is never read under another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from registry.schema import ComponentRef, Release, ReleaseVersion
from serving.generate.engine_spec import engine_application_name
from serving.schema import LanguageModelSpec

HASH_CHARS = 12
ROLE = "adapter"


def served_name(app: str, digest: str) -> str:
    """`digest`: the component's."""
    return f"{app}@{digest[:HASH_CHARS]}"


def adapter_of(release: Release) -> ComponentRef | None:
    return next((component for component in release.components if component.role == ROLE), None)


def engine_of(release: Release) -> LanguageModelSpec | None:
    """Of a release that an engine of this platform answers for."""
    raw: Any = release.spec.get("language_model")
    if raw is None:
        return None
    spec = LanguageModelSpec.model_validate(raw)
    return spec if spec.engine == "vllm" else None


@dataclass(frozen=True, slots=True)
class WantedEngine:
    """`adapters`: served name -> the component."""

    spec: LanguageModelSpec
    adapters: dict[str, ComponentRef] = field(default_factory=dict)


def wanted_engines(versions: Iterable[ReleaseVersion]) -> dict[str, WantedEngine]:
    """Name of the Serve application -> the engine, for these releases together."""
    wanted: dict[str, WantedEngine] = {}
    for release in (version.release for version in versions):
        spec = engine_of(release)
        if spec is None:
            continue
        engine = wanted.setdefault(engine_application_name(spec), WantedEngine(spec))
        adapter = adapter_of(release)
        if adapter is not None:
            engine.adapters[served_name(release.app, adapter.digest)] = adapter
    return wanted


class Changes(NamedTuple):
    """What an engine shall do now: `unload` first, it makes room."""

    load: tuple[str, ...]
    unload: tuple[str, ...]


def changes(
    wanted: Collection[str], loaded: Collection[str], unwanted_s: Mapping[str, float], most: int, linger_s: float
) -> Changes:
    """`unwanted_s`: how long nobody has wanted what is loaded. It stays for `linger_s`, since the routers move on a
    little later than the releases, but goes at once where another needs its place."""
    load = tuple(sorted(set(wanted) - set(loaded)))
    idle = sorted(set(loaded) - set(wanted), key=lambda name: (-unwanted_s.get(name, 0.0), name))
    crowded = max(0, len(loaded) + len(load) - most)
    return Changes(load, tuple(n for i, n in enumerate(idle) if i < crowded or unwanted_s.get(n, 0.0) >= linger_s))
