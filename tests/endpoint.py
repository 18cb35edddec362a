"""A small app on a real endpoint, without Ray: a made-up catalogue, releases built by the real builder, stores on real
SQLite, and the ingress in uvicorn, in a thread of the test's process.

`serve` is the heart; tests that need their own limits, stores or loader call it, the others take the fixtures.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from rich.console import Console

from registry.content import digest_folder, digest_json
from registry.database import migrate, open_database
from registry.manifest import release_digest
from registry.memory_store import MemoryStore
from registry.ports import ReleaseStore
from registry.schema import ComponentRef, Release, ReleaseVersion
from serving.components.embedder import TORCH_FOLDER, fingerprint
from serving.config import Limits, ServingConfig
from serving.ingress import Services, build_ingress
from serving.keys import SCOPES
from serving.logs import configure_logs
from serving.router import Load, LoadedRelease
from serving.schema import AppSpec, Item
from serving.store import SqlItemStore
from serving.stores import Stores, build_services, stores_over
from tests.loads import Loads
from tests.waiting import wait_for
from training.config import TrainingConfig
from training.index import BuiltRelease, ReleaseBuilder, work_folder
from training.progress import Progress

MAKERS = [
    ("푸른 언덕", "Blue Hill"),
    ("은빛 강", "Silver River"),
    ("참나무 숲", "Oak Forest"),
    ("아침 안개", "Morning Mist"),
    ("붉은 바위", "Red Rock"),
    ("하얀 등대", "White Lighthouse"),
    ("깊은 우물", "Deep Well"),
    ("노란 나비", "Yellow Butterfly"),
    ("검은 소나무", "Black Pine"),
    ("겨울 정원", "Winter Garden"),
    ("바람 골짜기", "Windy Valley"),
    ("둥근 조약돌", "Round Pebble"),
]
THINGS = [
    ("녹차", "green tea", "tea", 9_000),
    ("홍차", "black tea", "tea", 12_000),
    ("원두", "coffee beans", "coffee", 18_000),
    ("주전자", "kettle", "ware", 45_000),
    ("찻잔", "teacup", "ware", 15_000),
]


def made_up_items() -> list[Item]:
    """60 items of makers that do not exist. The coffee does not say whether it is organic."""
    items = []
    for m, (maker_ko, maker_en) in enumerate(MAKERS):
        for t, (ko, en, category, price) in enumerate(THINGS):
            attributes: dict[str, Any] = {"category": category, "price": price + 100 * m}
            if category != "coffee":
                attributes["organic"] = m % 2 == 0
            fields = {"ko": f"{maker_ko} {ko}", "en": f"{maker_en} {en}"}
            items.append(Item(f"TEA{m:02d}{t}", fields, attributes))
    return items


def made_up_spec(name: str, **changes: Any) -> AppSpec:
    """Rules first, then lexical search; fast to build and to load. `changes` replace whole top-level keys."""
    return AppSpec.model_validate(
        {
            "name": name,
            "description": "Made-up teas.",
            "items": {
                "text": ["ko", "en"],
                "attributes": {"category": "keyword", "price": "number", "organic": "bool"},
            },
            "retrieve": {
                "sources": {"rules": {"engine": "rules"}, "lexical": {"engine": "lexical"}},
                "fusion": {"method": "cascade", "order": ["rules", "lexical"], "threshold": 0.7},
            },
            "feedback": {"learn_expansions": True},
            "example_query": "blue hill green tea",
            **changes,
        }
    )


def dense_spec(name: str, **changes: Any) -> AppSpec:
    sources = {"rules": {"engine": "rules"}, "lexical": {"engine": "lexical"}, "dense": {"engine": "dense"}}
    return made_up_spec(name, retrieve={"sources": sources, "fusion": {"method": "weighted"}}, **changes)


def quiet_progress(app: str) -> Progress:
    return Progress(app, Console(quiet=True))


@dataclass
class Endpoint:
    """A running server. `key` has every scope."""

    url: str
    config: ServingConfig
    stores: Stores
    services: Services
    key: str

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """A client with this key (default: every scope; "": none)."""
        authorization = {} if key == "" else {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers={**authorization, **headers}, timeout=30)

    def new_key(
        self, scopes: Collection[str] = SCOPES, apps: Collection[str] | None = None, **rates: float
    ) -> tuple[str, str]:
        """(id, plaintext)."""
        new = self.services.keys.create("test", scopes, apps, rates.get("rate_per_s"), rates.get("burst"))
        return new.id, new.plaintext

    def ids(self, app: str, text: str, **body: Any) -> list[str]:
        """The ids that a query finds."""
        with self.client() as client:
            answer = client.post(f"/v1/apps/{app}/query", json={"query": text, **body})
        assert answer.status_code == 200, answer.text
        return [result["id"] for result in answer.json()["results"]]

    def release(self, app: str) -> str:
        """The version that serves, "" for none."""
        served = self.services.router.apps()[app]
        return served.version if served else ""


@dataclass
class Setup:
    """What `serve` may be told beside its apps. `load` replaces the real loader; `loads` replaces it and what
    connects to the arms of rollouts, of which there are none without it; `stores` may replace stores."""

    limits: Limits = field(default_factory=Limits)
    load: Callable[[ReleaseVersion], LoadedRelease] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    loads: Loads | None = None
    stores: Callable[[Stores], Stores] = lambda stores: stores


def open_test_stores(config: ServingConfig, releases: ReleaseStore) -> Stores:
    """Real SQLite, migrated, and the releases given."""
    migrate(config.database)
    return stores_over(open_database(config.database), releases)


def config_of(home: Path, apps: Sequence[str] = (), setup: Setup | None = None) -> ServingConfig:
    """Quick to notice changes, and one compute thread."""
    setup = setup or Setup()
    quick: dict[str, Any] = {"threads": 1, "refresh_s": 0.1, "traffic_poll_s": 0.05, "follow_s": 0.1, **setup.config}
    return ServingConfig(home=home, apps=tuple(apps), limits=setup.limits, **quick)


def build_release(home: Path, releases: ReleaseStore, spec: AppSpec, items: SqlItemStore) -> BuiltRelease:
    """A release of what is in `items`, published."""
    config = TrainingConfig(config_of(home))
    with work_folder(config, spec.name) as work:
        builder = ReleaseBuilder(spec, home, work, config, releases, quiet_progress(spec.name))
        built = builder.build(items)
        releases.publish(built.release, built.folders)
    return built


def publish(
    home: Path, releases: ReleaseStore, spec: AppSpec, items: Sequence[Item] | None = None, stable: bool = True
) -> ReleaseVersion:
    """Store the items (default: the made-up ones), build a release of the app and move `stable` to it."""
    stores = open_test_stores(config_of(home), releases)
    try:
        stores.items.upsert(spec.name, made_up_items() if items is None else items)
        digest = build_release(home, releases, spec, stores.items).release.digest
    finally:
        stores.database.close()
    version = next(v for v in releases.versions(spec.name) if v.release.digest == digest)
    if stable:
        releases.set_alias(spec.name, "stable", version.version)
    return version


def publish_embedder(folder: Path, releases: ReleaseStore, app: str, scratch: Path) -> None:
    """A first release of `app` that holds only the exported embedder, so that builds reuse it and export nothing."""
    from training.models import model_folder

    slim = scratch / "embedder"
    shutil.copytree(folder, slim, ignore=shutil.ignore_patterns(TORCH_FOLDER))
    digest, size = digest_folder(slim)
    name = "embedder.minilm"
    part = ComponentRef(name, "embedder", digest, size, fingerprint(slim, "auto", 96))
    model_digest, _ = digest_folder(model_folder("minilm"))
    spec = {"name": app}
    release = Release(app, spec, (part,), 0, release_digest(spec, (part,)), {}, {f"{name}.model": model_digest})
    releases.publish(release, {digest: slim})


@contextmanager
def serve(home: Path, releases: ReleaseStore, apps: Sequence[str], setup: Setup | None = None) -> Iterator[Endpoint]:
    """The ingress over `home` and `releases`, up when this yields; its apps may not be ready yet."""
    setup = setup or Setup()
    config = config_of(home, apps, setup)
    configure_logs(str(home / "log.jsonl"))  # not among what the tests of the command line read
    stores = setup.stores(open_test_stores(config, releases))
    connect = setup.loads.connect_arm if setup.loads is not None else None
    services = build_services(config, stores, _loader(config, stores, setup), connect)
    key = services.keys.create("test", SCOPES).plaintext
    with listening(build_ingress(services)) as url:
        yield Endpoint(url, config, stores, services, key)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An ASGI app in uvicorn, on a free port; its lifespan runs."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=10))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def _loader(config: ServingConfig, stores: Stores, setup: Setup) -> Load:
    from serving.inline import load_inline  # only the tests that load a release pay for it

    async def load(version: ReleaseVersion) -> LoadedRelease:
        if setup.load is not None:
            return setup.load(version)
        if setup.loads is not None:
            return await setup.loads.load(version)
        spec = AppSpec.model_validate(version.release.spec)
        return await asyncio.to_thread(load_inline, spec, version, stores, config)

    return load


def bare_release(releases: ReleaseStore, spec: AppSpec, mark: str = "") -> ReleaseVersion:
    """A release without components, for tests that bring their own loader; `mark` makes it another one."""
    raw = {**spec.model_dump(mode="json"), "description": mark}
    release = Release(spec.name, raw, (), 0, digest_json(raw))
    version = releases.publish(release, {})
    releases.set_alias(spec.name, "stable", version.version)
    return version


@pytest.fixture(scope="session")
def tea_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemoryStore]:
    """A home and releases of `teas` (plain) and `tea-orders` (order lines). Copy them, never write into them."""
    home = tmp_path_factory.mktemp("tea-home")
    releases = MemoryStore()
    publish(home, releases, made_up_spec("teas"))
    publish(home, releases, made_up_spec("tea-orders", understand={"engine": "order_lines"}))
    return home, releases


@pytest.fixture
def fresh_home(tea_home: tuple[Path, MemoryStore], tmp_path: Path) -> tuple[Path, MemoryStore]:
    """A home of this test's own, as `tea_home`."""
    shutil.copytree(tea_home[0], tmp_path / "home")
    releases = MemoryStore()
    for app in ("teas", "tea-orders"):
        source = tea_home[1].get(app, "stable")
        folders = {c.digest: tea_home[1].fetch(c, tmp_path / "parts") for c in source.release.components}
        releases.set_alias(app, "stable", releases.publish(source.release, folders).version)
    return tmp_path / "home", releases


@pytest.fixture
def endpoint(fresh_home: tuple[Path, MemoryStore]) -> Iterator[Endpoint]:
    """An endpoint of this test's own, with `teas`, `tea-orders`, and `not-ready`, which has no release."""
    with serve(*fresh_home, apps=["teas", "tea-orders", "not-ready"]) as running:
        yield running


@pytest.fixture(scope="session")
def shared_endpoint(tea_home: tuple[Path, MemoryStore], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """As `endpoint`, shared by tests that only ask."""
    home = tmp_path_factory.mktemp("shared") / "home"
    shutil.copytree(tea_home[0], home)
    with serve(home, tea_home[1], apps=["teas", "tea-orders", "not-ready"]) as running:
        yield running


@pytest.fixture(scope="session")
def dense_home(minilm_component: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemoryStore]:
    """A home and releases of `dense-teas`: rules, lexical and dense sources, weighted. Copy it before writing."""
    home, releases = tmp_path_factory.mktemp("dense-home"), MemoryStore()
    publish_embedder(minilm_component, releases, "dense-teas", tmp_path_factory.mktemp("slim"))
    publish(home, releases, dense_spec("dense-teas"))
    return home, releases


@pytest.fixture(scope="session")
def dense_endpoint(dense_home: tuple[Path, MemoryStore]) -> Iterator[Endpoint]:
    """An endpoint with `dense-teas`, shared by tests that only ask."""
    with serve(*dense_home, apps=["dense-teas"]) as running:
        yield running
