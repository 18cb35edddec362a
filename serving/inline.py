"""A release with every phase in this process. Called by the ingress for stable releases placed `inline`, by the replica
of an arm (`serving.units`), and by tests. No Ray here."""

from __future__ import annotations

import gc
import sys

from registry.schema import ReleaseVersion
from serving import build
from serving.config import ServingConfig
from serving.router import LoadedRelease
from serving.schema import AppSpec
from serving.stores import Stores


def load_inline(spec: AppSpec, version: ReleaseVersion, stores: Stores, config: ServingConfig) -> LoadedRelease:
    """Raises ReleaseRefused, RegistryUnavailable, OSError."""
    folders = build.fetch_components(version, stores.releases, config.component_cache)
    embedders = build.build_embedders(spec, folders, config)
    embeddings = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
    retrieval = build.build_retrieval(spec, folders, embeddings)
    followers = build.build_followers(version, spec, retrieval, stores.items, stores.expansions, config.follow_s)
    followers.start()
    pipeline = build.build_pipeline(build.build_understander(spec), retrieval)
    first = next(iter(embeddings.values()), None)
    if first is None:
        return LoadedRelease(spec, pipeline, followers.close)
    return LoadedRelease(spec, pipeline, followers.close, first.embed, count_tokens=first.count_tokens)


def tune_interpreter() -> None:
    """For a process whose event loop and compute threads share one interpreter lock."""
    # A thread that comes back from ONNX Runtime waits this long for the lock, while a core stands idle: the default of
    # 5 ms is most of a batch's time.
    sys.setswitchinterval(0.0005)
    # Each request makes a few hundred objects, nearly all freed by count: look for cycles less often than every 700.
    gc.set_threshold(20_000, 20, 20)
