"""A real MLflow server for tests, and the made-up releases that they publish.

Import the fixtures into the conftest.py of a folder (`from tests.mlflow_fixture import mlflow, mlflow_uri`): each
importing conftest has a server of its own, shared by the tests below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from registry.content import digest_folder
from registry.manifest import release_digest
from registry.mlflow_server import MlflowServer, start_mlflow
from registry.net import free_port
from registry.schema import ComponentRef, Release, Role


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MlflowServer, Path]]:
    """(the server, its home)."""
    home = tmp_path_factory.mktemp("mlflow-home")
    with start_mlflow(home, free_port(), home / "mlflow.log") as server:
        yield server, home


@pytest.fixture(scope="session")
def mlflow_uri(mlflow: tuple[MlflowServer, Path]) -> str:
    return mlflow[0].uri


def component(folder: Path, name: str, role: Role, files: Mapping[str, bytes]) -> tuple[ComponentRef, Path]:
    """Write a component's files into `folder`; (its reference, `folder`)."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    digest, size_bytes = digest_folder(folder)
    return ComponentRef(name, role, digest, size_bytes), folder


def make_release(folder: Path, app: str, mark: str) -> tuple[Release, dict[str, Path]]:
    """A sound release of three components. `mark` makes the rules differ; embedder and index stay as they are."""
    rules, rules_at = component(folder / mark, "retrieve.rules", "rules", {"rules.json": mark.encode()})
    embedder, embedder_at = component(
        folder / "embedder", "retrieve.dense", "embedder", {"model.bin": b"\0weights", "tokenizer/vocab.txt": b""}
    )
    embedder = replace(embedder, fingerprint="f1")
    index, index_at = component(folder / "index", "index.dense", "index", {"가격 a+b.npy": b"\1\2", ".about": b"x"})
    index = replace(index, fingerprint="f1", needs={"retrieve.dense": embedder.digest})
    parts = (rules, embedder, index)
    spec = {"name": app, "retrieve": {"fusion": {"method": "rrf"}, "sources": ["rules", "dense"]}}
    release = Release(
        app=app,
        spec=spec,
        components=parts,
        items_seq=7,
        digest=release_digest(spec, parts),
        metrics={"recall@10": 0.5, "accuracy": 1},
        lineage={"commit": "made-up", "dataset": "예시"},
    )
    return release, {rules.digest: rules_at, embedder.digest: embedder_at, index.digest: index_at}
