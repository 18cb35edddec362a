"""Building releases with the real embedder and Chroma: same inputs, same digest; little changed, little done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import ReleaseRefused
from registry.memory_store import MemoryStore
from serving import build
from serving.components.vectors import SyncReport
from serving.errors import BadRequest
from serving.schema import AppSpec, Item
from serving.store import SqlItemStore
from tests.endpoint import (
    build_release,
    config_of,
    dense_spec,
    made_up_items,
    made_up_spec,
    open_test_stores,
    publish_embedder,
    quiet_progress,
)
from training.config import TrainingConfig
from training.index import BuiltRelease, ReleaseBuilder, work_folder


class Bench:
    """A home with the made-up catalogue of `teas`, and the releases built of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.releases = MemoryStore()
        self._stores = open_test_stores(config_of(home), self.releases)
        self.items: SqlItemStore = self._stores.items
        self.items.upsert("teas", made_up_items())

    def build(self, spec: AppSpec | None = None) -> BuiltRelease:
        return build_release(self.home, self.releases, spec or made_up_spec("teas"), self.items)

    def close(self) -> None:
        self._stores.database.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def digests(built: BuiltRelease) -> dict[str, str]:
    return {component.name: component.digest for component in built.release.components}


def test_the_same_items_and_spec_give_the_same_release(bench: Bench) -> None:
    first, again = bench.build(), bench.build()
    assert first.release.digest == again.release.digest
    assert digests(first) == digests(again)
    assert len(bench.releases.versions("teas")) == 1
    assert first.release.items_seq == 60
    assert first.release.metrics["items"] == 60
    assert set(digests(first)) == {"catalogue", "retrieve.rules", "retrieve.lexical"}


def test_an_item_there_and_back_gives_the_first_release_again(bench: Bench) -> None:
    first = bench.build()
    bench.items.upsert("teas", [Item("NEW01", {"ko": "우롱차"})])
    second = bench.build()
    bench.items.delete("teas", ["NEW01"])
    third = bench.build()
    assert first.release.digest == third.release.digest != second.release.digest
    assert third.release.items_seq == 62


def test_what_did_not_change_is_shared(bench: Bench) -> None:
    first = bench.build()
    bench.items.upsert("teas", [Item("NEW01", {"ko": "우롱차"})])
    second = bench.build()
    changed = {name for name, digest in digests(second).items() if digests(first)[name] != digest}
    assert changed == {"catalogue", "retrieve.lexical"}  # the rules component holds no items


def test_another_spec_is_another_release_of_the_same_components(bench: Bench) -> None:
    first, second = bench.build(), bench.build(made_up_spec("teas", deadline_s=1.0))
    assert digests(first) == digests(second)
    assert first.release.digest != second.release.digest


def test_an_empty_catalogue_has_a_release(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    built = bench.build(made_up_spec("empty"))
    assert built.release.metrics["items"] == 0
    bench.close()


def test_an_embedder_that_is_not_there_is_named(bench: Bench) -> None:
    spec = made_up_spec("teas", retrieve={"sources": {"dense": {"engine": "dense", "embedder": "no-such-folder"}}})
    with pytest.raises(BadRequest, match="no-such-folder"):
        bench.build(spec)


def test_dense_builds_embed_only_what_changed_and_export_once(
    bench: Bench, minilm_component: Path, tmp_path: Path
) -> None:
    publish_embedder(minilm_component, bench.releases, "teas", tmp_path / "scratch")
    before = bench.releases.versions("teas")[0].release
    spec = dense_spec("teas")
    first = bench.build(spec)
    assert first.synced == {"dense": SyncReport(0, 60, 0)}
    assert first.release.component("embedder.minilm").digest == before.component("embedder.minilm").digest
    again = bench.build(spec)
    assert again.synced == {"dense": SyncReport(60, 0, 0)}
    assert again.release.digest == first.release.digest

    bench.items.upsert("teas", [Item("TEA000", {"ko": "푸른 언덕 말차", "en": "Blue Hill matcha"})])
    bench.items.delete("teas", ["TEA001"])
    changed = bench.build(spec)
    assert changed.synced == {"dense": SyncReport(58, 1, 1)}
    assert changed.release.digest != first.release.digest

    # An attribute is not embedded.
    bench.items.upsert("teas", [Item("TEA002", made_up_items()[2].fields, {"price": 1})])
    assert bench.build(spec).synced == {"dense": SyncReport(59, 0, 0)}

    index, embedder = first.release.component("retrieve.dense"), first.release.component("embedder.minilm")
    assert index.fingerprint == embedder.fingerprint
    assert index.needs["embedder.minilm"] == embedder.digest


def test_an_index_is_loaded_only_with_its_own_embedder(dense_home: tuple[Path, MemoryStore], tmp_path: Path) -> None:
    _, releases = dense_home
    version = releases.get("dense-teas", "stable")
    config = config_of(tmp_path)
    spec = AppSpec.model_validate(version.release.spec)
    folders = build.fetch_components(version, releases, config.component_cache)
    embedders = build.build_embedders(spec, folders, config)
    good = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
    build.build_retrieval(spec, folders, good)

    # The same weights read to another length make other vectors.
    raw = version.release.spec["retrieve"]["sources"]["dense"]
    shorter = made_up_spec("dense-teas", retrieve={"sources": {"dense": {**raw, "max_tokens": 16}}})
    other = build.build_embedders(shorter, folders, config)
    with pytest.raises(ReleaseRefused, match="palate index dense-teas"):
        build.build_retrieval(shorter, folders, {name: build.near("dense-teas", e) for name, e in other.items()})


def test_a_build_that_fails_leaves_nothing_behind(bench: Bench) -> None:
    spec = made_up_spec("teas", retrieve={"sources": {"rules": {"engine": "rules", "aliases": "no-such.yaml"}}})
    config = TrainingConfig(config_of(bench.home))
    with pytest.raises(BadRequest, match=r"no-such\.yaml"), work_folder(config, "teas") as work:
        ReleaseBuilder(spec, bench.home, work, config, bench.releases, quiet_progress("teas")).build(bench.items)
    assert list((bench.home / "build").iterdir()) == []
    assert bench.releases.versions("teas") == []
