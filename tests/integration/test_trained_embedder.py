"""A trained embedder in a release: it takes the place of the named one, stays in later builds, and goes when told."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.content import digest_folder
from registry.memory_store import MemoryStore
from registry.schema import Release
from serving.components.embedder import TORCH_FOLDER
from serving.schema import AppSpec, Item
from serving.store import SqlItemStore
from tests.endpoint import config_of, made_up_spec, open_test_stores, quiet_progress
from tests.tiny_embedder import make_model, names
from training.config import TrainingConfig
from training.index import BuiltRelease, Inputs, ReleaseBuilder

APP = "things"
SPEC: AppSpec = made_up_spec(
    APP, retrieve={"sources": {"dense": {"engine": "dense", "embedder": "tiny", "precision": "float32"}}}
)
EMBEDDER = "embedder.tiny"


class Shop:
    """A catalogue, the model that app.yaml names, and one that was made of it by training."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.app = home / "app"
        self.releases = MemoryStore()
        stores = open_test_stores(config_of(home), self.releases)
        self.items: SqlItemStore = stores.items
        self.items.upsert(APP, [Item(f"T{n:02d}", {"en": name, "ko": name}) for n, name in enumerate(names()[:20])])
        self.base = make_model(self.app / "tiny")
        self.trained = home / "trained"
        self.database = stores.database

    def build(self, inputs: Inputs | None = None) -> BuiltRelease:
        work = self.home / f"work-{len(list(self.home.glob('work-*')))}"
        work.mkdir()
        config = TrainingConfig(config_of(self.home))
        return ReleaseBuilder(SPEC, self.app, work, config, self.releases, quiet_progress(APP)).build(
            self.items, inputs
        )

    def publish(self, built: BuiltRelease, alias: str = "") -> Release:
        version = self.releases.publish(built.release, built.folders)
        if alias:
            self.releases.set_alias(APP, alias, version.version)
        return version.release


def train_a_little(base: Path, folder: Path) -> None:
    """As good as a training: other weights, the same architecture."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(base), device="cpu")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save(str(folder), create_model_card=False)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop(tmp_path_factory.mktemp("shop"))
    train_a_little(made.base, made.trained)
    return made


def test_the_way_of_a_trained_embedder(shop: Shop) -> None:
    base_digest, trained_digest = digest_folder(shop.base)[0], digest_folder(shop.trained)[0]
    first = shop.publish(shop.build(), "stable")
    assert (first.lineage[f"{EMBEDDER}.base"], first.lineage[f"{EMBEDDER}.model"]) == (base_digest, base_digest)

    inputs = Inputs(models={"tiny": shop.trained})
    built = shop.build(inputs)
    assert (built.named[EMBEDDER] / TORCH_FOLDER).is_dir(), "the next training begins with these weights"
    trained = shop.publish(built)
    assert (trained.lineage[f"{EMBEDDER}.base"], trained.lineage[f"{EMBEDDER}.model"]) == (base_digest, trained_digest)
    assert trained.component(EMBEDDER).digest != first.component(EMBEDDER).digest
    assert trained.component("retrieve.dense").needs[EMBEDDER] == trained.component(EMBEDDER).digest
    assert shop.build(inputs).release.digest == trained.digest, "the same model gives the same release"

    # A candidate that nobody promoted changes nothing for later builds.
    assert shop.build().release.component(EMBEDDER) == first.component(EMBEDDER)
    version = next(v.version for v in shop.releases.versions(APP) if v.release.digest == trained.digest)
    shop.releases.set_alias(APP, "stable", version)

    shop.items.upsert(APP, [Item("NEW", {"en": "red lamp", "ko": "red lamp"})])
    later = shop.build()
    assert later.release.component(EMBEDDER) == trained.component(EMBEDDER)
    assert later.release.lineage[f"{EMBEDDER}.model"] == trained_digest
    assert later.synced["dense"].embedded == 1, "its vectors are known"
    assert later.release.component("retrieve.dense").digest != trained.component("retrieve.dense").digest

    back = shop.build(Inputs(from_base=True)).release
    assert back.component(EMBEDDER) == first.component(EMBEDDER)
    assert back.lineage[f"{EMBEDDER}.model"] == base_digest

    # Another model of that name in app.yaml is another base: what was trained on the old one no longer fits.
    train_a_little(shop.trained, shop.base)
    assert shop.build().release.component(EMBEDDER).digest not in {
        first.component(EMBEDDER).digest,
        trained.component(EMBEDDER).digest,
    }
    shop.database.close()
