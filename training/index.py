"""Builds a release from an app's catalogue: its components, by content hash, ready to publish.

`training.cli` calls it for `palate index`; `training.run` calls it with what it trained. The catalogue is read once, in
id order, so the same items, models and spec give the same release digest. Vectors of texts that did not change come
from Chroma, an embedder that did not change from the release before.

What was trained stays: a build keeps the trained components of the stable release as long as they start from the models
that app.yaml names, until a training replaces them or `from_base` drops them. The lineage says which they are (see
`training.lineage`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from registry.content import digest_folder, digest_json
from registry.errors import ReleaseNotFound
from registry.manifest import release_digest
from registry.ports import ReleaseStore
from registry.schema import ComponentRef, Release, Role
from serving import build
from serving.components.catalogue import build_catalogue
from serving.components.index import build_index
from serving.components.lexical import build_lexical
from serving.components.record import item_input
from serving.components.rules import build_rules
from serving.components.vectors import ChromaVectors, SyncReport
from serving.errors import BadRequest
from serving.schema import AppSpec, Item, SourceSpec
from serving.schema.app_spec import FUNNELS
from serving.store.people import ensure_people_secret
from training.config import TrainingConfig
from training.errors import TrainingRefused
from training.interactions import Collecting, Interactions
from training.lineage import INTERACTIONS, base_key, base_of, model_key, trained_key
from training.models import MINILM, is_taste_model, model_folder
from training.parts import Parts
from training.ports import NewComponent
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
class Inputs:
    """What a build is given beside the catalogue. `models`: embedder name in app.yaml -> the sentence-transformers
    folder that takes its place. `components` enter the release as they are. `from_base`: forget what was trained.
    `interactions` gives what users did, where a source learns from it; None: what `feedback.source` says alone."""

    models: Mapping[str, Path] = field(default_factory=dict)
    components: Sequence[NewComponent] = ()
    from_base: bool = False
    interactions: Callable[[], Interactions] | None = None


class Catalogue(Protocol):
    """What a build reads: an ItemStore, or a snapshot of one."""

    def scan(self, app: str) -> Iterator[Item]: ...

    def count(self, app: str) -> int: ...

    def sequence(self, app: str) -> int: ...


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
        self._embedders: dict[str, NewComponent] = {}
        self._lineage: dict[str, str] = {}
        self._inputs = Inputs()
        self._reused: set[str] = set()
        self._exporting = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._synced: dict[str, SyncReport] = {}

    def build(self, items: Catalogue, inputs: Inputs | None = None) -> BuiltRelease:
        """Raises BadRequest, TrainingRefused or SetupError-like errors of the parts; publishes nothing."""
        self._inputs = inputs or Inputs()
        with self._timed("read"):
            seq = items.sequence(self._spec.name)
            catalogue = self._read(items)
        with self._timed("catalogue"):
            folder = self._work / "catalogue"
            build_catalogue(folder, catalogue, self._spec.items.attributes)
            snapshot = NewComponent("catalogue", "catalogue", folder)
        self._parts = self._files_and_funnels()
        # A drill is made of its options alone.
        sources = {n: source for n, source in self._spec.retrieve.sources.items() if source.engine != "drill"}
        # Side by side: reading words is Python's work, vectors and graph are not.
        with ThreadPoolExecutor(max_workers=2) as pool:
            built = {
                name: pool.submit(self._source, name, source, catalogue)
                for name, source in sorted(sources.items(), key=lambda item: item[1].engine)
            }
        parts = [snapshot, *self._embedders.values(), *(built[name].result() for name in sources), *self._parts.build()]
        release, named = self._release([*parts, *self._inputs.components], seq, len(catalogue))
        folders = {component.digest: named[component.name] for component in release.components}
        return BuiltRelease(release, folders, named, self._seconds, self._synced)

    def _files_and_funnels(self) -> Parts:
        def brought_along() -> Interactions:
            config = self._config.serving
            secret = ensure_people_secret(config.home, config.secrets)
            return Collecting(self._spec, self._app_folder, secret).collect()

        return Parts(self._spec, self._app_folder, self._work, self._inputs.interactions or brought_along)

    def _release(self, parts: Sequence[NewComponent], seq: int, items: int) -> tuple[Release, dict[str, Path]]:
        named = {part.name: part.folder for part in parts}
        content = {name: digest_folder(folder) for name, folder in named.items()}
        kept = self._kept(content)
        for component in kept:
            named[component.name] = self._store.fetch(component, self._config.serving.component_cache)
        components = [*(_reference(part, content) for part in parts), *kept]
        self._add_lineage({part.name for part in self._inputs.components}, kept)
        spec = self._spec.model_dump(mode="json")
        refs = tuple(components)
        metrics = {"items": float(items)}
        release = Release(self._spec.name, spec, refs, seq, release_digest(spec, refs), metrics, self._lineage)
        return release, named

    def _kept(self, content: Mapping[str, tuple[str, int]]) -> list[ComponentRef]:
        """The trained components of the release before that this build does not make itself."""
        before = self._before
        if before is None or self._inputs.from_base:
            return []
        kept = []
        for component in before.components:
            training = before.lineage.get(trained_key(component.name))
            if training not in self._spec.train or component.name in content:
                continue
            for name, digest in component.needs.items():
                if content.get(name, (digest,))[0] != digest:
                    raise TrainingRefused(
                        f"{component.name} of the stable release was trained for another {name} than this build has: "
                        f"train it again (palate train {self._spec.name} --only {training}), or build without what "
                        "was trained (palate index --from-base)"
                    )
            kept.append(component)
        return kept

    def _add_lineage(self, new: set[str], kept: Sequence[ComponentRef]) -> None:
        """Of what is taken over from the release before, where it came from; of what is new, the caller adds it."""
        if self._parts.learns_from_users:
            self._lineage[INTERACTIONS] = self._parts.what_users_did.fingerprint
        lineage = {} if self._before is None else self._before.lineage
        names = {component.name for component in kept}
        names |= {n for n in self._embedders if n in self._reused and trained_key(n) in lineage}
        for name in sorted(names - new):
            training = lineage[trained_key(name)]
            taken = {key: value for key, value in lineage.items() if key.startswith(f"train.{training}.")}
            self._lineage |= {trained_key(name): training, **taken}

    def _read(self, items: Catalogue) -> list[Item]:
        total = items.count(self._spec.name)
        catalogue: list[Item] = []
        with self._progress.step("reading the catalogue", total) as step:
            for item in items.scan(self._spec.name):
                catalogue.append(item)
                if len(catalogue) % 1000 == 0:
                    step(len(catalogue))
        return catalogue

    def _source(self, name: str, source: SourceSpec, catalogue: Sequence[Item]) -> NewComponent:
        folder = self._work / f"retrieve.{name}"
        weights = self._spec.text_weights(source)
        with self._timed(name):
            if source.engine == "dense":
                return self._dense(name, source, folder, catalogue)
            if source.engine in FUNNELS:
                return self._parts.funnel(name, catalogue)
            role: Role = "rules" if source.engine == "rules" else "lexical"
            if role == "rules":
                aliases = self._app_folder / source.aliases if source.aliases else None
                build_rules(folder, aliases, weights, source.options)
            else:
                with self._progress.step(f"{name}: words", len(catalogue)) as step:
                    build_lexical(folder, catalogue, weights, source.options, step)
            return NewComponent(f"retrieve.{name}", role, folder, needs=("catalogue",))

    def _dense(self, name: str, source: SourceSpec, folder: Path, catalogue: Sequence[Item]) -> NewComponent:
        weights, record_field = self._spec.text_weights(source), self._spec.record_field(source)
        texts = [(item.id, item_input(item, weights, record_field)) for item in catalogue]
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
        return NewComponent(f"retrieve.{name}", "index", folder, embedder.fingerprint, ("catalogue", embedder_name))

    def _embedder(self, name: str, source: SourceSpec, texts: Sequence[tuple[str, str]]) -> NewComponent:
        """The app's embedder: the one trained now, else that of the release before if it was made of the same model,
        else exported anew."""
        base = source.embedder if source.embedder == MINILM else self._app_folder / source.embedder
        if isinstance(base, Path) and not base.is_dir():
            raise BadRequest(
                f"app.yaml names the embedder {source.embedder!r}, but there is no folder {base}",
                field="embedder",
            )
        base_digest, _ = digest_folder(model_folder(base))
        if source.record and self._spec.record is not None:
            # What an encoder of records reads is part of it: of another declaration, another one is made.
            base_digest = digest_json({"model": base_digest, "record": self._spec.record.model_dump(mode="json")})
        trained = self._inputs.models.get(source.embedder)
        model = trained or base
        model_digest, _ = (base_digest, 0) if trained is None else digest_folder(trained)
        reused = self._reuse(name, base_digest, None if trained is None else model_digest)
        if reused is not None:
            folder, model_digest = reused
            if trained is None and model_digest != base_digest:
                self._reused.add(name)
        else:
            folder = self._work / name
            # By hash order, so that the sample stays nearly the same when items come and go.
            sample = sorted((digest_json({"id": item_id}), text) for item_id, text in texts)[:SAMPLE_ITEMS]
            placement = self._spec.placement.units.get("embed")
            # A trained one keeps its weights: a GPU needs them, and the next training begins with them.
            weights = trained is not None or (placement is not None and placement.num_gpus > 0)
            with self._progress.step(f"{source.embedder}: exporting to ONNX", None):
                self._export(model, folder, [text for _, text in sample], weights)
        self._lineage |= {base_key(name): base_digest, model_key(name): model_digest}
        fingerprint = build.document_embedder(folder, source, self._config.serving).fingerprint
        return NewComponent(name, "embedder", folder, fingerprint)

    def _export(self, model: str | Path, folder: Path, sample: Sequence[str], weights: bool) -> None:
        # torch: only where there is something to export
        if is_taste_model(model):
            from training.taste2vec.component import export_taste

            export_taste(Path(model), folder, self._spec, sample)
        else:
            from training.export import export_embedder

            export_embedder(model, folder, sample, torch_weights=weights)

    def _reuse(self, name: str, base: str, model: str | None) -> tuple[Path, str] | None:
        """(folder, digest of its model) of an exported embedder that will do: of `model` exactly; None: of whatever
        the release before made of `base`, else of `base` itself."""
        before = None if self._before is None or self._inputs.from_base else self._before
        if model is None and before is not None and base_of(before, name) == base:
            return self._fetched(before, name)
        for release in self._releases:
            if release.lineage.get(model_key(name)) == (model or base):
                return self._fetched(release, name)
        return None

    def _fetched(self, release: Release, name: str) -> tuple[Path, str] | None:
        try:
            folder = self._store.fetch(release.component(name), self._config.serving.component_cache)
        except (KeyError, ReleaseNotFound):
            return None
        return folder, release.lineage[model_key(name)]

    @cached_property
    def _releases(self) -> list[Release]:
        return [version.release for version in self._store.versions(self._spec.name)]

    @cached_property
    def _before(self) -> Release | None:
        """Stable; the newest where there is no stable."""
        try:
            return self._store.get(self._spec.name, "stable").release
        except ReleaseNotFound:
            return self._releases[0] if self._releases else None

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[step] = round(time.perf_counter() - started, 2)


def _reference(part: NewComponent, content: Mapping[str, tuple[str, int]]) -> ComponentRef:
    if missing := sorted(set(part.needs) - set(content)):
        raise TrainingRefused(f"the new component {part.name} needs {missing[0]}, which the release does not have")
    digest, size = content[part.name]
    return ComponentRef(part.name, part.role, digest, size, part.fingerprint, {n: content[n][0] for n in part.needs})


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
