"""`palate doctor`: each check on a made-up world, and the command itself on real faults."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry.database import migrate, migrate_down
from registry.net import free_port
from serving.cli import build_root
from serving.doctor import checks, probes
from serving.doctor.checks import Finding, Reach
from serving.doctor.examine import gpus_wanted


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_a_library_of_another_version_is_named() -> None:
    required = ["numpy>=2.3,<3", "ray[serve]==2.60.0", 'torch==2.13.0; extra == "train"', "prometheus-client>=0.26"]
    right = {"numpy": "2.3.5", "ray": "2.60.0", "prometheus-client": "0.26.0"}
    assert checks.versions(required, right).state == "ok"
    wrong = checks.versions(required, {**right, "ray": "2.59.0", "numpy": "1.26.4"})
    assert wrong.state == "failed"
    assert "ray 2.59.0" in wrong.detail
    assert "numpy 1.26.4" in wrong.detail
    assert "numpy is missing" in checks.versions(required, {"ray": "2.60.0"}).detail


@pytest.mark.parametrize(
    ("free", "state"), [(50 * 2**30, "ok"), (3 * 2**30, "warning"), (2**29, "failed"), (0, "failed")]
)
def test_a_full_disk_fails_before_it_is_full(free: int, state: str) -> None:
    assert states(checks.home("/h", "", free, []))["disk"] == state


def test_a_home_that_cannot_be_written_hides_the_rest() -> None:
    assert states(checks.home("/h", "Read-only file system", 0, [])) == {"home": "failed"}


@pytest.mark.parametrize(("skew_s", "state"), [(0.4, "ok"), (-5.0, "warning"), (31.0, "failed"), (None, "skipped")])
def test_clocks_that_differ(skew_s: float | None, state: str) -> None:
    assert checks.clock("database", skew_s).state == state


@pytest.mark.parametrize(
    ("schema", "state", "fix"),
    [
        ("0005", "ok", ""),
        ("0004", "failed", "palate migrate"),
        ("", "failed", "palate migrate"),
        ("0006", "failed", "--down-to"),
    ],
)
def test_the_schema_is_compared_with_the_newest(schema: str, state: str, fix: str) -> None:
    found = next(f for f in checks.database(Reach(skew_s=0.0), schema, "0005") if f.name == "schema")
    assert found.state == state
    assert fix in found.fix


def test_gpus_are_asked_for_by_units_and_language_models() -> None:
    specs = {
        "a": {"placement": {"units": {"embed": {"num_gpus": 0.5}, "retrieve": {}}}},
        "b": {"language_model": {"num_gpus": 2}},
        "c": {"placement": {"default": "inline"}, "language_model": None},
    }
    assert gpus_wanted(specs) == {"a": 0.5, "b": 2.0}
    assert checks.gpus({"b": 2.0}, 1.0).state == "failed"
    assert checks.gpus({"b": 2.0}, 2.0).state == "ok"
    assert checks.gpus({"b": 2.0}, None).state == "skipped"
    assert checks.gpus({}, 0.0).state == "ok"


def test_each_app_that_serves_shows_in_the_metrics() -> None:
    text = '# TYPE palate_release_serving gauge\npalate_release_serving{app="a",release="1"} 1.0\n'
    assert checks.metrics(text, ["a"]).state == "ok"
    assert "for b" in checks.metrics(text, ["a", "b"]).detail


def test_applications_that_do_not_run_are_named() -> None:
    assert checks.ray(Reach(), {"palate": "RUNNING", "gone": "DELETING"})[0].state == "ok"
    assert "arm DEPLOY_FAILED" in checks.ray(Reach(), {"palate": "RUNNING", "arm": "DEPLOY_FAILED"})[0].detail
    assert checks.ray(Reach(), {})[0].state == "failed"


def test_everything_that_failed_says_how_to_mend_it() -> None:
    worst = [
        checks.versions(["numpy>=2"], {}),
        *checks.home("/h", "", 0, ["api-key"]),
        *checks.home("/h", "denied", 0, []),
        checks.mounted_secrets("/s", ["x lacks"]),
        *checks.database(Reach("away"), "", ""),
        *checks.database(Reach(skew_s=99.0), "0001", "0002"),
        checks.stable("a", "away", missing=False),
        *checks.endpoint(Reach("away"), {}),
        *checks.endpoint(Reach(), {"a": "not loaded"}),
        checks.metrics("", ["a"]),
        checks.gpus({"a": 1}, 0),
        *checks.ray(Reach("away"), {}),
    ]
    assert [f for f in worst if f.state == "failed" and not f.fix] == []
    assert sum(f.state == "failed" for f in worst) >= 12


class Clock(BaseHTTPRequestHandler):
    """A server whose clock is an hour ahead, that refuses who shows no credentials on /private, fails on /broken and
    serves not all of its apps."""

    def do_GET(self) -> None:
        failing = 500 if self.path.startswith("/broken") else 200
        self.send_response_only({"/private": 401, "/readyz": 503}.get(self.path, failing))
        body = b'{"ready": false, "problems": {"teas": "it loads"}}' if self.path == "/readyz" else b"{}"
        self.send_header("date", formatdate(1_800_003_600, usegmt=True))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Clock)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


def test_a_clock_is_read_from_the_date_header(server: str) -> None:
    reach, answer = probes.http(f"{server}/health", wall=lambda: 1_800_000_000.0)
    assert answer is not None
    assert reach == Reach("", pytest.approx(3600.5))
    refused, _ = probes.http(f"{server}/private")
    assert "refuses us (401)" in refused.problem
    away, nothing = probes.http(f"http://127.0.0.1:{free_port()}/health")
    assert "does not answer" in away.problem
    assert nothing is None


def test_an_error_is_no_answer_unless_it_says_its_problems(server: str, tmp_path: Path) -> None:
    broken, _ = probes.http(f"{server}/broken")
    assert broken.problem == f"{server}/broken answers 500 Internal Server Error"
    unready, answer = probes.http(f"{server}/readyz")
    assert unready.problem == ""
    assert probes.json_of(answer)["problems"] == {"teas": "it loads"}
    _, found = run(tmp_path, PALATE_MLFLOW_URI=f"{server}/broken", PALATE_URL=server)
    assert (found["MLflow"]["state"], found["endpoint"]["state"]) == ("failed", "ok")
    assert found["serving teas"]["detail"] == "it loads"


def test_a_databases_clock_is_compared_with_ours(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'p.db'}"
    migrate(url)
    reach, schema, head = probes.database(url, wall=lambda: time.time() - 100.0)
    assert reach.skew_s == pytest.approx(100.0, abs=30)
    assert schema == head


def run(home: Path, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The command's status, and its findings by name. Nothing of this environment leaks into it."""
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("PALATE_", "MLFLOW_"))}
    away = {"PALATE_MLFLOW_URI": f"http://127.0.0.1:{free_port()}"}
    done = CliRunner().invoke(
        build_root(), ["doctor", "--json", "--home", str(home)], env={**clean, **away, **variables}
    )
    said = json.loads(done.stdout)
    assert said["ok"] == (done.exit_code == 0)
    return done.exit_code, {finding["name"]: finding for finding in said["findings"]}


def test_a_database_that_is_away(tmp_path: Path) -> None:
    code, found = run(tmp_path, PALATE_DATABASE_URL=f"postgresql://palate:geheim@127.0.0.1:{free_port()}/palate")
    assert code == 1
    assert found["database"]["state"] == "failed"
    assert "PALATE_DATABASE_URL" in found["database"]["fix"]
    assert "geheim" not in json.dumps(found)
    assert found["MLflow"]["state"] == "failed"
    assert found["endpoint"]["state"] == "skipped"


def test_a_schema_that_is_behind_and_a_key_that_all_may_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'palate.db'}"
    migrate(url)
    migrate_down(url, "0001")
    (tmp_path / "api-key").write_text("made up")
    (tmp_path / "api-key").chmod(0o644)
    code, found = run(tmp_path)
    assert code == 1
    assert found["schema"]["state"] == "failed"
    assert found["key files"]["state"] == "failed"
    assert "chmod 600" in found["key files"]["fix"]


def test_a_home_where_a_file_stands(tmp_path: Path) -> None:
    """Root may write anywhere, so a folder without rights would prove nothing here."""
    (tmp_path / "home").write_text("a file")
    _, found = run(tmp_path / "home", PALATE_DATABASE_URL=f"sqlite:///{tmp_path / 'p.db'}")
    assert found["home"]["state"] == "failed"
    assert "PALATE_HOME" in found["home"]["fix"]


def test_secrets_that_are_not_mounted(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "trace-secret").write_text("not hex")
    _, found = run(tmp_path, PALATE_SECRETS=str(tmp_path / "secrets"))
    assert found["secrets"]["state"] == "failed"
    for name in ("trace-secret", "people-secret", "webhook-secret"):
        assert name in found["secrets"]["detail"]
