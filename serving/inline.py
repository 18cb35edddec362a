"""A release with every phase in this process. Called by the ingress for stable releases placed `inline`, by the replica
of an arm (`serving.units`), and by tests. No Ray here."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

from registry.schema import ReleaseVersion
from serving import build
from serving.components.catalogue import Catalogue
from serving.config import ServingConfig
from serving.router import LoadedRelease
from serving.schema import AppSpec
from serving.schema.app_spec import FUNNELS
from serving.store.people import ensure_people_secret
from serving.stores import Stores


def load_inline(
    spec: AppSpec, version: ReleaseVersion, stores: Stores, config: ServingConfig, *, generating: bool = True
) -> LoadedRelease:
    """`generating`: also the phase generate, which an arm leaves to the router. Raises ReleaseRefused,
    RegistryUnavailable, OSError."""
    folders = build.fetch_components(version, stores.releases, config.component_cache)
    embedders = build.build_embedders(spec, folders, config)
    embeddings = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
    catalogue = Catalogue.load(folders["catalogue"])
    retrieval = build.build_retrieval(spec, folders, embeddings, catalogue, people_secret(spec, config))
    model = build.connect_model(spec)
    ranking = build.build_ranking(spec, folders, catalogue, people_secret(spec, config), config.compute_threads)
    pipeline = build.build_pipeline(build.build_understand(spec, folders, model), retrieval, ranking)
    generator = None
    if generating and model is not None:
        generator = build.build_generator(version, spec, folders, model)
    followers = build.build_followers(version, spec, retrieval, stores.items, stores.expansions, config.follow_s)
    followers.start()
    first = next(iter(embeddings.values()), None)
    return LoadedRelease(
        spec,
        pipeline,
        followers.close,
        first.embed if first else None,
        count_tokens=first.count_tokens if first else None,
        model=model,
        generator=generator,
    )


def add_generation(
    loaded: LoadedRelease, version: ReleaseVersion, stores: Stores, config: ServingConfig
) -> LoadedRelease:
    """The phase generate, in this process, of a release whose other phases run elsewhere. Raises as `load_inline`."""
    model = build.connect_model(loaded.spec)
    if model is None:
        return loaded
    needed = ["generate", "catalogue"] if loaded.spec.generate is not None else []
    folders = build.fetch_components(version, stores.releases, config.component_cache, needed) if needed else {}
    return replace(loaded, model=model, generator=build.build_generator(version, loaded.spec, folders, model))


def people_secret(spec: AppSpec, config: ServingConfig) -> bytes:
    """For the pseudonyms that a ranker and the funnels know; b"" where there is neither."""
    knows_people = spec.rank is not None or any(s.engine in FUNNELS for s in spec.retrieve.sources.values())
    return ensure_people_secret(config.home, config.secrets) if knows_people else b""


def tune_interpreter() -> None:
    """For a process whose event loop and compute threads share one interpreter lock."""
    # A thread that comes back from ONNX Runtime waits this long for the lock, while a core stands idle: the default of
    # 5 ms is most of a batch's time.
    sys.setswitchinterval(0.0005)
    # Each request makes a few hundred objects, nearly all freed by count: look for cycles less often than every 700.
    gc.set_threshold(20_000, 20, 20)
