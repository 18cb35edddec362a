"""Wires a release's components into phases in this process. No Ray here: `serving.app` calls it in replicas,
`training.evaluate` in a job, tests in theirs; all of them run the very pipeline that serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.errors import ReleaseRefused
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion
from serving import metrics
from serving.components.catalogue import Catalogue
from serving.components.index import IndexInfo
from serving.components.rules import load_rules
from serving.compute import compute
from serving.config import ServingConfig
from serving.generate.adapters import adapter_of, served_name
from serving.generate.connect import connect_language_model
from serving.generate.generator import Generator, check_prompt
from serving.generate.grounded import GroundedOptions, Names
from serving.generate.prompt import Prompt
from serving.items import ExpansionFollower, ExpansionStore, Followers, ItemFollower
from serving.pipeline import Pipeline, Ranking, Understand
from serving.ports import DocumentEmbedder, ItemStore, LanguageModel, Source, Vectors
from serving.rank.phase import COMPONENT as RANK
from serving.rank.phase import make_rank
from serving.retrieve.ann import load_vector_source
from serving.retrieve.drill import DrillSource
from serving.retrieve.embedding_cache import CachedEmbedder
from serving.retrieve.funnels import make_funnel
from serving.retrieve.lexical import LexicalSource
from serving.retrieve.make_embedder import make_embedder
from serving.retrieve.retrieval import DenseSource, Retrieval
from serving.retrieve.rules import RulesSource
from serving.schema import AppSpec, GenerateSpec, SourceSpec
from serving.schema.app_spec import FUNNELS
from serving.schema.pseudonym import pseudonym
from serving.understand.make import COMPONENT as UNDERSTAND
from serving.understand.make import make_understand

Folders = Mapping[str, Path]
"""Component name -> the folder of its verified files."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One embedder, as queries (awaited) and as changed items (from a thread) reach it."""

    embed: Callable[[Sequence[str]], Awaitable[Vectors]]
    embed_now: Callable[[Sequence[str]], Vectors]
    fingerprint: str
    count_tokens: Callable[[Sequence[str]], int] | None = None


def fetch_components(version: ReleaseVersion, store: ReleaseStore, cache: Path, names: Sequence[str] = ()) -> Folders:
    """The folders of a release's components (those whose name starts with one of `names`; all by default).

    Raises ReleaseRefused when files were altered, RegistryUnavailable when the store cannot be reached.
    """
    wanted = [c for c in version.release.components if not names or c.name.startswith(tuple(names))]
    return {component.name: store.fetch(component, cache) for component in wanted}


def build_understand(spec: AppSpec, folders: Folders, model: LanguageModel | None = None) -> Understand:
    """The phase understand. Without `model` what would ask one goes by its rules. Raises ReleaseRefused."""
    return make_understand(spec, folders.get(UNDERSTAND), model)


def document_embedder(folder: Path, source: SourceSpec, config: ServingConfig) -> DocumentEmbedder:
    """The embedder of a dense source, as index builds use it: not cached."""
    return make_embedder(folder, source.precision, threads=config.compute_threads, max_tokens=source.max_tokens)


def build_embedders(spec: AppSpec, folders: Folders, config: ServingConfig) -> dict[str, CachedEmbedder]:
    """Embedder name -> the loaded embedder with its query cache; one each, however many sources share it."""
    embedders: dict[str, CachedEmbedder] = {}
    for source in spec.retrieve.sources.values():
        if source.engine == "dense" and source.embedder not in embedders:
            embedder = document_embedder(folders[f"embedder.{source.embedder}"], source, config)
            embedders[source.embedder] = CachedEmbedder(embedder, config.embedding_cache)
    return embedders


def near(app: str, embedder: CachedEmbedder) -> Embedding:
    """An embedder of this process, run in a thread."""

    async def embed(texts: Sequence[str]) -> Vectors:
        vectors = await compute(embedder.embed, texts)
        stats = embedder.take_stats()
        metrics.CACHE.labels(app, "hit").inc(stats.hits)
        metrics.CACHE.labels(app, "miss").inc(stats.misses)
        return vectors

    return Embedding(embed, embedder.embed_documents, embedder.fingerprint, embedder.count_tokens)


def build_retrieval(
    spec: AppSpec,
    folders: Folders,
    embeddings: Mapping[str, Embedding],
    catalogue: Catalogue | None = None,
    people_secret: bytes = b"",
) -> Retrieval:
    """`people_secret`: see `build_ranking`. Raises ReleaseRefused when an index was built by another embedder than the
    one at hand."""
    catalogue = catalogue or Catalogue.load(folders["catalogue"])
    sources: dict[str, Source | DenseSource] = {}
    for name, source in spec.retrieve.sources.items():
        if source.engine == "drill":
            sources[name] = DrillSource(source.options)
            continue
        folder = folders[f"retrieve.{name}"]
        if source.engine == "dense":
            sources[name] = _dense(name, spec, source, folder, embeddings[source.embedder])
        elif source.engine == "lexical":
            sources[name] = LexicalSource.load(folder)
        elif source.engine in FUNNELS:
            sources[name] = make_funnel(source.engine, folder, catalogue, namer(people_secret))
        else:
            items = [catalogue.item(row) for row in range(catalogue.snapshot_rows)]
            rules = load_rules(folder)
            sources[name] = RulesSource(items, rules.weights, rules.aliases, {**rules.options, **source.options})
    return Retrieval(spec, catalogue, sources)


def _dense(name: str, spec: AppSpec, source: SourceSpec, folder: Path, embedding: Embedding) -> DenseSource:
    built_by = IndexInfo.load(folder).embedder_fingerprint
    if built_by != embedding.fingerprint:
        raise ReleaseRefused(
            f"retrieve.{name} was built by embedder {built_by[:12]}, but the release's {source.embedder} is "
            f"{embedding.fingerprint[:12]}: build the index again with `palate index {spec.name}`"
        )
    fields = tuple(spec.text_weights(source))
    vectors = load_vector_source(folder)
    return DenseSource(vectors, fields, embedding.embed, embedding.embed_now, spec.record_field(source))


def build_followers(
    version: ReleaseVersion,
    spec: AppSpec,
    retrieval: Retrieval,
    items: ItemStore,
    expansions: ExpansionStore,
    interval_s: float,
) -> Followers:
    followers: list[ItemFollower | ExpansionFollower] = [
        ItemFollower(items, spec.name, version.release.items_seq, retrieval.apply)
    ]
    if spec.feedback.learn_expansions:
        followers.append(ExpansionFollower(expansions, spec.name, retrieval.set_expansions))
    return Followers(spec.name, followers, interval_s)


def build_ranking(
    spec: AppSpec, folders: Folders, catalogue: Catalogue, people_secret: bytes = b"", threads: int = 1
) -> Ranking | None:
    """The phase rank over the live catalogue, None where the app has none or nothing was trained yet.
    `people_secret` turns users into the pseudonyms that training knows; b"": they are pseudonyms already."""

    return make_rank(spec, folders.get(RANK), catalogue, namer(people_secret), threads)


def namer(people_secret: bytes) -> Callable[[str], str]:
    def name_of(user: str) -> str:
        return pseudonym(people_secret, user) if people_secret else user

    return name_of


def build_pipeline(understand: Understand, retrieval: Retrieval, ranking: Ranking | None = None) -> Pipeline:
    """All phases but generate, in this process."""
    return Pipeline(understand, retrieval, ranking)


GENERATE = "generate"
"""Name of the component with the prompt."""


def connect_model(spec: AppSpec) -> LanguageModel | None:
    """The app's language model, up or not; None where it has none. Raises BadRequest where its key is missing."""
    return None if spec.language_model is None else connect_language_model(spec.language_model)


def load_prompt(spec: GenerateSpec, folder: Path) -> Prompt:
    """The component `generate`. Raises BadRequest for what could not answer; an index build asks, too."""
    prompt = Prompt.load(folder)
    check_prompt(spec, prompt)
    return prompt


def build_generator(version: ReleaseVersion, spec: AppSpec, folders: Folders, model: LanguageModel) -> Generator | None:
    """The phase generate of a release; None for an app without. Its adapter is loaded by whoever deploys it."""
    if spec.generate is None:
        return None
    if GENERATE not in folders:
        raise ReleaseRefused(f"the release has no component `generate`: build it again with `palate index {spec.name}`")
    prompt = load_prompt(spec.generate, folders[GENERATE])
    adapter = adapter_of(version.release)
    names = _names(prompt, folders["catalogue"]) if "grounded" in spec.generate.checks else Names()
    return Generator(spec.generate, prompt, model, served_name(spec.name, adapter.digest) if adapter else "", names)


def _names(prompt: Prompt, folder: Path) -> Names:
    """Those of the catalogue as the release knows it."""
    options = (prompt.form(form).checks.get("grounded", {}) for form in ("", *prompt.forms))
    fields = {name for one in options for name in GroundedOptions.model_validate(one).names}
    catalogue = Catalogue.load(folder)
    items = (catalogue.item(row).fields for row in range(catalogue.snapshot_rows))
    return Names(str(item[name]) for item in items for name in fields if isinstance(item.get(name), str))
