"""An engine for real: vLLM on the CPU in a Ray Serve application, kept by `Engines`, asked through `VllmModel`. Its
model was made on the spot and never trained: what it says means nothing.

One engine for the whole module: it takes half a minute to start, and once more where the tests kill it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from registry.content import digest_folder
from registry.memory_store import MemoryStore
from registry.schema import ComponentRef, Release, ReleaseVersion
from serving.config import ServingConfig
from serving.errors import DeadlineExceeded, Overloaded, PhaseFailed, ReplicaLost, StoreUnavailable
from serving.generate.adapters import adapter_of, served_name
from serving.generate.engine_spec import engine_application_name
from serving.generate.vllm_model import VllmModel
from serving.local.home import Home
from serving.ports import LanguageRequest, Piece
from serving.schema import LanguageModelSpec
from tests.language_models import LONG, Case, LanguageModelContract, text_of, told, until_running
from tests.own_ray import ray_of_our_own
from tests.tiny_llama import make_adapter, make_model
from tests.waiting import wait_for

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APPS = ("red", "blue")
UP_S = 400.0


@dataclass
class Bench:
    """`versions`: releases of two apps with an adapter each, and of one with an adapter of another base."""

    spec: LanguageModelSpec
    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    versions: dict[str, ReleaseVersion] = field(default_factory=dict)

    def add(self, app: str, adapter: Path) -> None:
        digest, size = digest_folder(adapter)
        self.store.files[digest] = {path.name: path.read_bytes() for path in adapter.iterdir()}
        component = ComponentRef("generate.adapter", "adapter", digest, size)
        spec = {"language_model": self.spec.model_dump(mode="json")}
        self.versions[app] = ReleaseVersion(1, Release(app, spec, (component,), 0, digest))

    def name(self, app: str) -> str:
        component = adapter_of(self.versions[app].release)
        assert component is not None
        return served_name(app, component.digest)

    @property
    def model(self) -> VllmModel:
        return VllmModel("tiny", engine_application_name(self.spec), threaded=True)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="palate-engine-"))
    base = make_model(folder / "base")
    spec = LanguageModelSpec(
        model=str(base), max_model_len=512, max_adapters=2, max_adapter_rank=8,
        # 32 blocks of 128 tokens: enough to see it full.
        engine_args={"kv_cache_memory_bytes": 32 * 128 * 2048},
    )  # fmt: skip
    bench = Bench(spec, folder)
    for seed, app in enumerate(APPS):
        bench.add(app, make_adapter(folder / app, base, seed))
    bench.add("strange", make_adapter(folder / "strange", make_model(folder / "another", seed=9), 9))
    home = Home(folder / "home")
    home.prepare()
    try:
        with ray_of_our_own(home):
            yield bench
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def engines(bench: Bench) -> Iterator[object]:
    """The engine is up and holds an adapter of each app."""
    from serving.local.engines import Engines

    config = ServingConfig(home=bench.folder / "home")
    engines = Engines(bench.store, config, adapter_linger_s=0.5, engine_linger_s=1.0)
    engines.start()
    try:
        engines.follow([bench.versions[app] for app in APPS])
        for app in APPS:
            wait_for(lambda app=app: not engines.missing(bench.versions[app]), UP_S, "the engine")  # type: ignore[misc]
        yield engines
    finally:
        engines.close()


class TestVllm(LanguageModelContract):
    @pytest.fixture
    def case(self, bench: Bench, engines: object) -> Case:
        model = bench.model

        async def running() -> int:
            state = (await model.state())[0]
            return state.running + state.waiting

        return Case(model, running, too_long=600)


async def test_adapters_answer_side_by_side_on_one_base(bench: Bench, engines: object) -> None:
    model = bench.model
    assert list(await model.adapters()) == sorted(map(bench.name, APPS))
    asked = [LanguageRequest(prompt="The shop", max_tokens=12, adapter=a) for a in ("", *map(bench.name, APPS))] * 2
    answers = [text_of(pieces) for pieces in await asyncio.gather(*(told(model, request) for request in asked))]
    assert answers[:3] == answers[3:]
    assert len(set(answers)) == 3, "each adapter has its own answer, and none is the base's"


async def test_an_adapter_is_loaded_from_its_files_where_its_folder_is_not_seen(bench: Bench, engines: object) -> None:
    model = bench.model
    handle = (await model._connected()).plain
    gone = str(bench.folder / "nowhere")
    assert not await handle.load_adapter.remote("other@1", gone)
    with pytest.raises(Overloaded, match="max_adapters"):
        await model.load_adapter("other@1", bench.folder / "red")


async def test_an_adapter_of_another_base_is_refused_and_says_so(bench: Bench, engines: object) -> None:
    from serving.local.engines import Engines

    assert isinstance(engines, Engines)
    strange = bench.versions["strange"]
    engines.follow([bench.versions["red"], strange])
    wait_for(lambda: "belongs to 'another'" in engines.refusal(strange), what="the refusal")
    assert list(await bench.model.adapters()) == [bench.name("red")], "what no release names was unloaded"
    with pytest.raises(StoreUnavailable, match="adapter"):
        await told(bench.model, LanguageRequest(prompt="x", adapter=bench.name("strange")), 30)
    engines.follow([bench.versions[app] for app in APPS])
    wait_for(lambda: not engines.missing(bench.versions["blue"]), what="its adapter is loaded again")


async def test_more_than_the_cache_holds_is_refused_with_a_time(bench: Bench, engines: object) -> None:
    model = bench.model
    answers = await asyncio.gather(*(told(model, LONG) for _ in range(40)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert all(isinstance(answer, list | Overloaded) for answer in answers), answers
    assert 0 < len(refused) < 40
    assert all(1.0 <= error.retry_after_s <= 30.0 for error in refused)
    await until_running(Case(model, lambda: _reserved(model), 0), 0)


async def _reserved(model: VllmModel) -> int:
    return (await model.state())[0].reserved_blocks


async def test_an_engine_that_is_killed_fails_its_callers_and_comes_back_with_its_adapters(
    bench: Bench, engines: object
) -> None:
    from serving.local.engines import Engines

    assert isinstance(engines, Engines)
    model = bench.model
    pieces: list[list[Piece]] = [[] for _ in range(4)]
    calls = [asyncio.create_task(told(model, LONG, 60, into)) for into in pieces]
    while not all(pieces):
        await asyncio.sleep(0.01)
    began = time.monotonic()
    core = [p for p in psutil.Process((await model.state())[0].pid).children() if "EngineCore" in p.name()]
    core[0].kill()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} <= {ReplicaLost, list}, errors
    assert ReplicaLost in {type(error) for error in errors}
    print(f"\nkill -9 of vLLM: callers know after {time.monotonic() - began:.2f} s")
    # New ones are refused within a few seconds, or wait and are answered: nobody hangs.
    refusals = 0
    while True:
        asked = LanguageRequest(prompt="The shop", max_tokens=4, adapter=bench.name("red"))
        tried = time.monotonic()
        try:
            await told(model, asked, 20)
            break
        except (StoreUnavailable, ReplicaLost, DeadlineExceeded):
            refusals += 1
        assert time.monotonic() - tried < 25
        assert time.monotonic() - began < UP_S, "the engine did not come back"
    print(f"back with its adapter after {time.monotonic() - began:.1f} s, {refusals} refusals meanwhile")
    wait_for(lambda: not engines.missing(bench.versions["blue"]), UP_S, "the other adapter")


async def test_an_engine_that_no_release_names_goes(bench: Bench, engines: object) -> None:
    from ray import serve

    from serving.local.engines import Engines

    assert isinstance(engines, Engines)
    engines.follow([])
    name = engine_application_name(bench.spec)
    wait_for(lambda: name not in serve.status().applications, what="its application is gone")
    with pytest.raises((StoreUnavailable, ReplicaLost)):
        await told(bench.model, LONG)
    with pytest.raises((PhaseFailed, StoreUnavailable)):
        await bench.model.ready()
