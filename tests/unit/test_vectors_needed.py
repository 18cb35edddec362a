"""Which collections of vectors an app's releases still need."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from registry.memory_store import MemoryStore
from registry.schema import ComponentRef, Release, ReleaseVersion
from serving.config import ServingConfig
from training.config import TrainingConfig
from training.vectors import NEWEST, drop_unused_vectors, needed


def version(number: int, fingerprint: str, *aliases: str) -> ReleaseVersion:
    embedder = ComponentRef("embedder.minilm", "embedder", f"e{fingerprint}", 1, fingerprint)
    index = ComponentRef("retrieve.dense", "index", f"i{number}", 1, fingerprint)
    rules = ComponentRef("retrieve.rules", "rules", "r", 1)
    return ReleaseVersion(
        number, Release("teas", {}, (embedder, index, rules), 1, f"d{number}"), aliases=frozenset(aliases)
    )


def test_those_of_releases_with_an_alias_and_of_the_newest() -> None:
    versions = [version(1, "a"), version(2, "b", "previous"), version(3, "c"), version(4, "d", "stable")]
    newest = [version(5 + n, f"new{n}") for n in range(NEWEST)]
    fingerprints = {fingerprint for _, fingerprint in needed("teas", [*versions, *newest])}
    assert fingerprints == {"b", "d", *(f"new{n}" for n in range(NEWEST))}
    assert needed("teas", versions[:1]) == {("teas.dense", "a")}
    assert needed("teas", []) == set()


def test_vectors_that_another_process_has_open_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainingConfig(ServingConfig(home=tmp_path, apps=("teas",)))
    assert drop_unused_vectors("teas", MemoryStore(), config) == []
    assert not (tmp_path / "chroma").exists(), "an app without vectors needs none"
    (tmp_path / "chroma").mkdir()
    with FileLock(tmp_path / "chroma.lock"):
        assert drop_unused_vectors("teas", MemoryStore(), config) == []
    assert "unused vectors stay" in caplog.text
