"""palate up and down as people use and misuse them, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from registry.net import free_port
from serving.local.home import Home
from tests.platform import Platform, run_palate, running, start, wine_app
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small app without an embedder: these tests start it many times."""
    folder = wine_app(tmp_path_factory.mktemp("apps") / "wines", "wines")
    file = folder / "app.yaml"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "dense: {" not in line]
    file.write_text("\n".join(lines).replace("[rules, dense]", "[rules]"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shared(app: Path) -> Iterator[Platform]:
    with running([app]) as platform:
        yield platform


@pytest.fixture
def platform(shared: Platform, app: Path) -> Platform:
    """The shared platform, started again where a test ended it."""
    if shared.home.running() is None:
        start(shared.home, shared.port, [app])
    return shared


def query(platform: Platform, text: str = "샤또 마고") -> dict[str, object]:
    with platform.client() as client:
        answer = client.post("/v1/apps/wines/query", json={"query": text})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ours(platform: Platform) -> list[psutil.Process]:
    """Every process that carries this home in its environment or command."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(platform.home.root) in " ".join(process.cmdline()) or (
                process.environ().get("PALATE_HOME") == str(platform.home.root)
            )
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if mine and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_restart_keeps_items_releases_keys_and_trace_tokens(platform: Platform, app: Path) -> None:
    trace_id = query(platform)["trace_id"]
    item = {
        "id": "9Z00001",
        "fields": {"name_ko": "나비야 꿈결", "name_en": "Nabiya Dream"},
        "attributes": {"price": 1},
    }
    with platform.client() as client:
        assert client.put("/v1/apps/wines/items", json={"items": [item]}).status_code == 200
    key = platform.home.api_key_file.read_text()
    assert oct(platform.home.api_key_file.stat().st_mode & 0o777) == "0o600"

    assert "Stopped" in platform.palate("down").stdout
    assert ours(platform) == []
    began = time.monotonic()
    printed = start(platform.home, platform.port, [app])
    assert "building its first release" not in printed
    assert time.monotonic() - began < 120
    assert platform.home.api_key_file.read_text() == key
    answer = query(platform, "나비야 꿈결")
    assert answer["results"][0]["id"] == "9Z00001"  # type: ignore[index]
    assert answer["release"] == "1"
    with platform.client() as client:
        body = {"trace_id": trace_id, "event": "select", "item_id": "9Z00001"}
        assert client.post("/v1/apps/wines/feedback", json=body).json()["stored"] == "database"


def test_a_second_up_of_the_same_home_is_refused_in_one_line(platform: Platform, app: Path) -> None:
    second = run_palate(platform.home, "up", "--app", str(app), "--port", str(free_port()), check=False)
    assert second.returncode == 1
    assert "runs already" in second.stderr
    assert "palate down" in second.stderr
    query(platform)


def test_down_ends_everything_after_up_was_killed_and_nothing_else(platform: Platform) -> None:
    running_now = platform.home.running()
    assert running_now is not None
    os.kill(running_now.pid, signal.SIGKILL)
    wait_for(lambda: platform.home.running() is None, 10, "the kill")
    platform.palate("down")
    wait_for(lambda: ours(platform) == [], 20, "every process gone")
    assert "Nothing runs" in platform.palate("down").stdout


def test_a_killed_router_replica_comes_back_and_requests_are_answered(platform: Platform) -> None:
    routers = [
        p for p in psutil.process_iter(["cmdline"]) if "ServeReplica:palate:Router" in " ".join(p.info["cmdline"] or [])
    ]
    mine = [p for p in routers if p.ppid() in {q.pid for q in ours(platform)} or p in ours(platform)]
    assert mine, "the router replica of this platform"
    mine[0].kill()

    def answers() -> bool:
        with platform.client() as client:
            return client.post("/v1/apps/wines/query", json={"query": "샤또 마고"}).status_code == 200

    wait_for(answers, 60, "an answer after the kill")


def test_mlflow_is_started_again_and_serving_goes_on_without_it(platform: Platform) -> None:
    state = platform.home.running()
    assert state is not None
    commands = {p: " ".join(p.cmdline()) for p in ours(platform)}
    servers = [p for p, command in commands.items() if "mlflow" in command and "serving.cli" not in command]
    assert servers
    for process in servers:
        process.kill()
    query(platform)

    def back() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", state.mlflow_port)) == 0

    wait_for(back, 150, "MLflow again")
    query(platform)


def test_a_port_in_use_is_one_clear_line(app: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run_palate(home, "up", "--app", str(app), "--port", str(port), check=False)
    assert refused.returncode == 1
    assert f"port {port} is in use" in refused.stderr
    assert "--port" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_app_that_is_not_there_and_a_broken_app_are_named(app: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    missing = run_palate(home, "up", "--app", "no-such-app", check=False)
    assert missing.returncode == 1
    assert "no-such-app" in missing.stderr
    assert "wine-orders" in missing.stderr
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "app.yaml").write_text((app / "app.yaml").read_text().replace("engine: rules", "engine: magic"))
    refused = run_palate(home, "up", "--app", str(broken), check=False)
    assert refused.returncode == 1
    assert "retrieve.sources.rules.engine" in refused.stderr
    assert "Traceback" not in refused.stderr
