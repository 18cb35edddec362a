"""Arms of rollouts on a real Ray: each in a process of its own that can be killed, hung, refused or taken away, while
the deployer says what became of it and callers get an error that they can act upon.

Ray Serve without an endpoint: the test's process is the deployer and the caller. Killing takes the real process.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from registry.fakes import MemoryBoard, MemoryTables
from registry.mlflow_store import MlflowStore
from registry.schema import ReleaseVersion
from registry.traffic import ArmReport, RouterReport, Traffic, TrialArm
from serving.config import ServingConfig
from serving.errors import DeadlineExceeded, ReplicaLost, StoreUnavailable
from serving.local.home import Home
from serving.retrieve.drill import ALLOWED
from serving.router import LoadedRelease
from serving.schema import AppSpec, Query
from tests.endpoint import config_of, made_up_spec, publish
from tests.mlflow_fixture import mlflow
from tests.own_ray import ray_of_our_own
from tests.waiting import wait_for

__all__ = ["mlflow"]

T = TypeVar("T")
QUERY = Query("blue hill green tea", top_k=3)
RULES = {"rules": {"engine": "rules"}, "lexical": {"engine": "lexical"}}
# The first query is the one that warms.
SLOW = {**RULES, "drill": {"engine": "drill", "weight": 0, "options": {"delay_ms": 1500, "after": 1}}}
HANGS = {**RULES, "drill": {"engine": "drill", "weight": 0, "options": {"hang": 1, "after": 1}}}
LEAKS = {**RULES, "drill": {"engine": "drill", "weight": 0, "options": {"leak_mb": 100, "after": 1}}}


@dataclass
class Bench:
    """The deployer's cluster. `versions` are accepted for traffic."""

    config: ServingConfig
    versions: dict[str, ReleaseVersion]
    artifacts: Path
    tables: MemoryTables = field(default_factory=MemoryTables)
    rollout: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On one loop for all tests, as handles need it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def begin(self, canary: str, control: str | None = None, **changes: Any) -> Traffic:
        self.rollout += 1
        number = {name: version.version for name, version in self.versions.items()}
        traffic = Traffic("teas", self.rollout, number["sound"], number[canary], rollout=self.rollout)
        if control:
            traffic = replace(traffic, control=number[control])
        self.tables.traffic["teas"] = replace(traffic, **changes)
        return self.tables.traffic["teas"]

    def end(self) -> None:
        self.tables.traffic["teas"] = Traffic("teas", 1000 + self.rollout, self.versions["sound"].version)

    def report(self, arm: TrialArm = "canary") -> ArmReport | None:
        return self.tables.arms.get(("teas", self.rollout, arm))

    def phase(self, arm: TrialArm = "canary") -> str:
        report = self.report(arm)
        return report.phase if report else ""

    def reason(self) -> str:
        """Why the canary failed."""
        report = self.report()
        return report.reason if report else ""

    def connect(self, release: str, traffic: Traffic, arm: TrialArm = "canary") -> LoadedRelease:
        from serving.app import connect_arm

        return self.run(connect_arm(self.versions[release], traffic, arm))

    def ready(self, release: str, traffic: Traffic, arm: TrialArm = "canary") -> LoadedRelease:
        began = time.monotonic()
        wait_for(lambda: self.phase(arm) in ("ready", "failed"), 60, f"{arm} is ready")
        print(f"deploy: {arm} ready after {time.monotonic() - began:.2f} s")
        assert self.phase(arm) == "ready", self.report(arm)
        return self.connect(release, traffic, arm)


def replicas(arm: str) -> list[psutil.Process]:
    """The processes of an arm's replicas, e.g. of "r1-canary"."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"teas-{arm}:" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def first_ids(loaded: LoadedRelease, bench: Bench) -> list[str]:
    answers = bench.run(loaded.pipeline.answer([QUERY]))
    return [candidate.id for candidate in answers[0].lines[0].result.candidates]


@pytest.fixture(scope="module")
def bench(mlflow: Any) -> Iterator[Bench]:
    server, mlflow_home = mlflow
    folder = Path(tempfile.mkdtemp(prefix="palate-arms-"))
    home = Home(folder / "home")
    home.prepare()
    store = MlflowStore(server.uri)
    config = config_of(home.root, ["teas"], None).model_copy(update={"mlflow_uri": server.uri, "arm_memory_mb": 500})
    plain = {"sources": RULES, "fusion": {"method": "weighted"}}
    specs = {
        "sound": made_up_spec("teas", retrieve=plain),
        "slow": made_up_spec("teas", retrieve={**plain, "sources": SLOW}, deadline_s=60),
        "hangs": made_up_spec("teas", retrieve={**plain, "sources": HANGS}, deadline_s=2),
        "leaks": made_up_spec("teas", retrieve={**plain, "sources": LEAKS}),
        "split": made_up_spec("teas", retrieve=plain, placement={"default": "split"}),
    }
    versions = {name: publish(home.root, store, spec, stable=name == "sound") for name, spec in specs.items()}
    bench = Bench(config, versions, mlflow_home)
    bench.tables.releases.update({("teas", v.version): v for v in versions.values()})
    thread = threading.Thread(target=bench.loop.run_forever, daemon=True)
    thread.start()
    try:
        with ray_of_our_own(home, {ALLOWED: "1"}):
            from serving.local.deployments import Deployer

            deployer = Deployer(MemoryBoard(bench.tables), store, config)
            deployer.start()
            yield bench
            deployer.close()
    finally:
        bench.loop.call_soon_threadsafe(bench.loop.stop)
        thread.join(10)
        shutil.rmtree(folder, ignore_errors=True)


def test_arms_answer_from_processes_of_their_own_and_go_when_no_traffic_names_them(bench: Bench) -> None:
    traffic = bench.begin("slow", control="sound")
    with pytest.raises(StoreUnavailable):
        bench.connect("sound", traffic, "control")
    control, canary = bench.ready("sound", traffic, "control"), bench.ready("slow", traffic)
    assert first_ids(control, bench) == first_ids(canary, bench) != []
    assert len(replicas("r1-canary")) == len(replicas("r1-control")) == 1
    bench.end()
    wait_for(lambda: not replicas("r1-canary") and not replicas("r1-control"), 30, "the arms are gone")


def test_a_killed_arm_fails_its_callers_at_once_a_canary_stays_down_a_control_comes_back(bench: Bench) -> None:
    traffic = bench.begin("slow", control="sound")
    control, canary = bench.ready("sound", traffic, "control"), bench.ready("slow", traffic)

    async def killed() -> float:
        calls = [asyncio.ensure_future(canary.pipeline.answer([QUERY])) for _ in range(3)]
        await asyncio.sleep(0.7)
        for process in replicas(f"r{traffic.rollout}-canary"):
            process.kill()
        began = time.monotonic()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [ReplicaLost] * 3, errors
        return time.monotonic() - began

    print(f"kill -9: callers know after {bench.run(killed()):.2f} s")
    began = time.monotonic()
    wait_for(lambda: bench.phase() == "failed", 30, "the canary is reported")
    print(f"kill -9: reported after {time.monotonic() - began:.2f} s more")
    assert "lost" in bench.reason()
    assert first_ids(control, bench)
    for process in replicas(f"r{traffic.rollout}-control"):
        process.kill()
    wait_for(lambda: bench.phase("control") == "failed", 30, "the control is reported")
    wait_for(lambda: bench.phase("control") == "ready", 60, "the control is back")
    assert first_ids(bench.connect("sound", traffic, "control"), bench)
    assert bench.phase() == "failed"
    assert replicas(f"r{traffic.rollout}-canary") == []


def test_a_stopped_canary_is_reported_and_its_callers_do_not_wait_for_it(bench: Bench) -> None:
    traffic = bench.begin("sound")
    canary = bench.ready("sound", traffic)
    stopped = replicas(f"r{traffic.rollout}-canary")
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()

    async def given_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await canary.pipeline.answer([QUERY])

    bench.run(given_up())
    wait_for(lambda: bench.phase() == "failed", 30, "the canary is reported")
    print(f"SIGSTOP: reported after {time.monotonic() - began:.2f} s")
    for process in stopped:  # Ray would end it, after another ten seconds
        process.kill()


def test_a_canary_whose_computation_hangs_is_reported(bench: Bench) -> None:
    traffic = bench.begin("hangs", answer_within_ratio=0.5)
    canary = bench.ready("hangs", traffic)
    began = time.monotonic()

    async def ask() -> None:
        with pytest.raises((DeadlineExceeded, ReplicaLost)):
            await canary.pipeline.answer([QUERY])

    while bench.phase() != "failed" and time.monotonic() - began < 30:
        bench.run(ask())
    assert "lost" in bench.reason(), bench.report()
    print(f"hung computation: reported within {time.monotonic() - began:.2f} s")


def test_a_canary_that_leaks_ends_alone_at_its_limit(bench: Bench) -> None:
    traffic = bench.begin("leaks", control="sound")
    control, canary = bench.ready("sound", traffic, "control"), bench.ready("leaks", traffic)
    for _ in range(20):
        try:
            first_ids(canary, bench)
        except ReplicaLost:
            break
    else:
        pytest.fail("it went past its limit of 500 MiB")
    wait_for(lambda: bench.phase() == "failed", 30, "the canary is reported")
    assert first_ids(control, bench)
    assert bench.phase("control") == "ready"


def test_an_arm_of_a_split_release_runs_its_units(bench: Bench) -> None:
    traffic = bench.begin("split")
    canary = bench.ready("split", traffic)
    assert first_ids(canary, bench)
    name = f"r{traffic.rollout}-canary"
    assert len(replicas(name)) == 2  # understand and retrieve: it has no embedder
    for process in replicas(name):
        process.kill()
    wait_for(lambda: bench.phase() == "failed", 30, "the canary is reported")


def test_a_split_release_stays_until_every_router_has_moved_on(bench: Bench) -> None:
    from serving.app import connect_split
    from serving.local.deployments import SPLIT_LINGER_S

    split, sound = bench.versions["split"], bench.versions["sound"]
    spec = AppSpec.model_validate(split.release.spec)
    name = f"v{split.version}"
    bench.rollout += 1
    bench.tables.traffic["teas"] = Traffic("teas", 2000, stable=split.version)

    async def running() -> bool:
        try:
            return bool(await (await connect_split(spec, split)).pipeline.answer([QUERY]))
        except StoreUnavailable:
            return False

    wait_for(lambda: bench.run(running()), 60, "the split release answers")
    stop = threading.Event()

    def follow(generation: int) -> None:
        report = RouterReport("router", "teas", generation, split.version, "", time.time())
        MemoryBoard(bench.tables).report_router(report)

    lagging = threading.Thread(target=lambda: [follow(2000) for _ in iter(lambda: stop.wait(0.2), True)])
    lagging.start()
    try:
        bench.tables.traffic["teas"] = Traffic("teas", 2001, stable=sound.version)
        time.sleep(SPLIT_LINGER_S + 2)
        assert bench.run(running()), "a router that has not followed still sends it requests"
    finally:
        stop.set()
        lagging.join()
    follow(2001)
    wait_for(lambda: not replicas(name), 30, "its units are gone")


def test_a_canary_whose_files_were_altered_is_refused_with_the_reason(bench: Bench) -> None:
    part = bench.versions["sound"].release.component("retrieve.lexical")
    shutil.rmtree(bench.config.component_cache / part.digest)
    stored = [path for path in bench.artifacts.rglob("*") if path.is_file() and path.name.startswith("lexical")]
    assert stored
    for path in stored:
        path.write_bytes(b"altered" + path.read_bytes())
    bench.begin("sound")
    wait_for(lambda: bench.phase() == "failed", 60, "the canary is refused")
    assert bench.reason().startswith("ReleaseRefused: the stored files of retrieve.lexical"), bench.reason()
    wait_for(lambda: not replicas(f"r{bench.rollout}-canary"), 30, "nothing of it runs")
