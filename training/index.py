"""Builds a release from an app's catalogue: its components, by content hash, ready to publish.

`training.cli` calls it for `palate index`; training jobs call it with an embedder they trained. The catalogue is read
once, in id order, so the same items and the same spec give the same release digest. Vectors of texts that did not
change come from Chroma, an embedder that did not change from the release before.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.content import digest_folder, digest_json
from registry.errors import ReleaseNotFound
from registry.manifest import release_digest
from registry.ports import ReleaseStore
from registry.schema import ComponentRef, Release, Role
from serving import build
from serving.components.catalogue import build_catalogue
from serving.components.index import build_index
from serving.components.lexical import build_lexical
from serving.components.rules import build_rules
from serving.components.text import item_text
from serving.components.vectors import ChromaVectors, SyncReport
from serving.errors import BadRequest
from serving.ports import ItemStore
from serving.schema import AppSpec, Item, SourceSpec
from training.config import TrainingConfig
from training.models import MINILM, model_folder
from training.progress import Progress

SAMPLE_ITEMS = 512


@dataclass(slots=True)
class BuiltRelease:
    """A release and the folder of each of its components, by digest; `seconds` per step; `synced`: what each dense
    source took from Chroma and what it had to embed."""

    release: Release
    folders: dict[str, Path]
    named: dict[str, Path]
    seconds: dict[str, float]
    synced: dict[str, SyncReport]


@dataclass(frozen=True, slots=True)
class _Part:
    """A component that lies built in a folder; `needs` names those it was built for."""

    name: str
    role: Role
    folder: Path
    fingerprint: str = ""
    needs: tuple[str, ...] = ()


class ReleaseBuilder:
    """Builds into `work`, a folder of its own that the caller removes."""

    def __init__(
        self,
        spec: AppSpec,
        app_folder: Path,
        work: Path,
        config: TrainingConfig,
        store: ReleaseStore,
        progress: Progress,
    ) -> None:
        self._spec = spec
        self._app_folder = app_folder
        self._work = work
        self._config = config
        self._store = store
        self._progress = progress
        self._embedders: dict[str, _Part] = {}
        self._lineage: dict[str, str] = {}
        self._exporting = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._synced: dict[str, SyncReport] = {}

    def build(self, items: ItemStore) -> BuiltRelease:
        """Raises BadRequest or SetupError-like errors of the parts; publishes nothing."""
        with self._timed("read"):
            seq = items.sequence(self._spec.name)
            catalogue = self._read(items)
        with self._timed("catalogue"):
            folder = self._work / "catalogue"
            build_catalogue(folder, catalogue, self._spec.items.attributes)
            snapshot = _Part("catalogue", "catalogue", folder)
        # A drill is made of its options alone.
        sources = {n: source for n, source in self._spec.retrieve.sources.items() if source.engine != "drill"}
        # Side by side: reading words is Python's work, vectors and graph are not.
        with ThreadPoolExecutor(max_workers=2) as pool:
            built = {
                name: pool.submit(self._source, name, source, catalogue)
                for name, source in sorted(sources.items(), key=lambda item: item[1].engine)
            }
        parts = [snapshot, *self._embedders.values(), *(built[name].result() for name in sources)]
        release, named = self._release(parts, seq, len(catalogue))
        folders = {component.digest: named[component.name] for component in release.components}
        return BuiltRelease(release, folders, named, self._seconds, self._synced)

    def _release(self, parts: Sequence[_Part], seq: int, items: int) -> tuple[Release, dict[str, Path]]:
        components: dict[str, ComponentRef] = {}
        for part in parts:
            digest, size = digest_folder(part.folder)
            needs = {name: components[name].digest for name in part.needs}
            components[part.name] = ComponentRef(part.name, part.role, digest, size, part.fingerprint, needs)
        spec = self._spec.model_dump(mode="json")
        refs = tuple(components.values())
        metrics = {"items": float(items)}
        release = Release(self._spec.name, spec, refs, seq, release_digest(spec, refs), metrics, self._lineage)
        return release, {part.name: part.folder for part in parts}

    def _read(self, items: ItemStore) -> list[Item]:
        total = items.count(self._spec.name)
        catalogue: list[Item] = []
        with self._progress.step("reading the catalogue", total) as step:
            for item in items.scan(self._spec.name):
                catalogue.append(item)
                if len(catalogue) % 1000 == 0:
                    step(len(catalogue))
        return catalogue

    def _source(self, name: str, source: SourceSpec, catalogue: Sequence[Item]) -> _Part:
        folder = self._work / f"retrieve.{name}"
        weights = self._spec.text_weights(source)
        with self._timed(name):
            if source.engine == "dense":
                return self._dense(name, source, folder, catalogue)
            role: Role = "rules" if source.engine == "rules" else "lexical"
            if role == "rules":
                aliases = self._app_folder / source.aliases if source.aliases else None
                build_rules(folder, aliases, weights, source.options)
            else:
                with self._progress.step(f"{name}: words", len(catalogue)) as step:
                    build_lexical(folder, catalogue, weights, source.options, step)
            return _Part(f"retrieve.{name}", role, folder, needs=("catalogue",))

    def _dense(self, name: str, source: SourceSpec, folder: Path, catalogue: Sequence[Item]) -> _Part:
        texts = [(item.id, item_text(item, self._spec.text_weights(source))) for item in catalogue]
        embedder_name = f"embedder.{source.embedder}"
        with self._exporting:
            if embedder_name not in self._embedders:
                self._embedders[embedder_name] = self._embedder(embedder_name, source, texts)
        embedder = build.document_embedder(self._embedders[embedder_name].folder, source, self._config.serving)
        url = self._config.chroma_url
        with (
            ChromaVectors(None if url else self._config.home / "chroma", url or None) as chroma,
            self._progress.step(f"{name}: vectors", len(texts)) as step,
        ):
            # A collection per source: two sources may embed different fields with one embedder.
            home = f"{self._spec.name}.{name}"
            self._synced[name] = chroma.sync(home, embedder.fingerprint, texts, embedder.embed_documents, step)
            vectors = chroma.vectors(home, embedder.fingerprint, [item_id for item_id, _ in texts])
        vectors = vectors.reshape(-1, embedder.dimension)
        with self._progress.step(f"{name}: index", len(texts)) as step:
            build_index(folder, vectors, embedder.fingerprint, source.search, lambda done, _: step(done))
        return _Part(f"retrieve.{name}", "index", folder, embedder.fingerprint, ("catalogue", embedder_name))

    def _embedder(self, name: str, source: SourceSpec, texts: Sequence[tuple[str, str]]) -> _Part:
        """The app's embedder: from the newest release if it was made of the same model, else exported anew."""
        model = source.embedder if source.embedder == MINILM else self._app_folder / source.embedder
        if isinstance(model, Path) and not model.is_dir():
            raise BadRequest(
                f"app.yaml names the embedder {source.embedder!r}, but there is no folder {model}",
                field="embedder",
            )
        model_digest, _ = digest_folder(model_folder(model))
        folder = self._reuse(name, model_digest)
        if folder is None:
            folder = self._work / name
            # By hash order, so that the sample stays nearly the same when items come and go.
            sample = sorted((digest_json({"id": item_id}), text) for item_id, text in texts)[:SAMPLE_ITEMS]
            placement = self._spec.placement.units.get("embed")
            gpu = placement is not None and placement.num_gpus > 0
            with self._progress.step(f"{source.embedder}: exporting to ONNX", None):
                from training.export import export_embedder  # torch: only where there is something to export

                export_embedder(model, folder, [text for _, text in sample], torch_weights=gpu)
        self._lineage[f"{name}.model"] = model_digest
        fingerprint = build.document_embedder(folder, source, self._config.serving).fingerprint
        return _Part(name, "embedder", folder, fingerprint)

    def _reuse(self, name: str, model_digest: str) -> Path | None:
        try:
            newest = self._store.versions(self._spec.name)[0].release
            if newest.lineage.get(f"{name}.model") != model_digest:
                return None
            return self._store.fetch(newest.component(name), self._config.serving.component_cache)
        except (IndexError, KeyError, ReleaseNotFound):
            return None

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[step] = round(time.perf_counter() - started, 2)


@contextmanager
def work_folder(config: TrainingConfig, app: str) -> Iterator[Path]:
    """A folder for one build, removed afterwards; leftovers of builds that were killed go too."""
    root = config.home / "build"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{app}-*"):
        if time.time() - old.stat().st_mtime > 6 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{app}-{time.time_ns()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
