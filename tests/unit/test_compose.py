"""k8s/compose.yaml is what it says: Compose accepts it, and what it names exists in the code that it starts."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.main import get_command

from serving.cli import build_root
from serving.cluster.exporter import PORT as EXPORTER_PORT
from serving.cluster.secrets import compose_archive, mounted_files, secret_manifest
from serving.config import Limits, ServingConfig
from serving.keys import ApiKeys

ROOT = Path(__file__).parents[2]
FILE = ROOT / "k8s" / "compose.yaml"
OTHERS = {"PALATE_SECRETS", "PALATE_EXPORTER_PORT", "PALATE_CHROMA_URL", "PALATE_RAY_CPUS", "PALATE_IMAGE"}
"""Not of ServingConfig: read by the module or file named for it."""


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"])


@pytest.fixture(scope="module")
def ours(services: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services.items() if "PALATE_IMAGE" in service["image"]}


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """The files that `serving.cluster.secrets --files -` writes."""
    with tarfile.open(fileobj=io.BytesIO(compose_archive())) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def test_compose_accepts_it(made: dict[str, bytes], tmp_path: Path) -> None:
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not installed (Debian package: docker-compose)")
    (tmp_path / ".env").write_bytes(made[".env"])
    command = [compose, "-f", str(FILE), "--env-file", str(tmp_path / ".env"), "config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    without = subprocess.run([*command[:3], "config"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert "run serving.cluster.secrets first" in without.stderr


def test_every_variable_is_one_that_is_read(ours: dict[str, dict[str, Any]]) -> None:
    known = {f"PALATE_{n.upper()}" for model in (ServingConfig, Limits) for n in model.model_fields} | OTHERS
    named = {name for service in ours.values() for name in service["environment"] if name.startswith("PALATE_")}
    assert named - known == set()
    for name, service in ours.items():
        values = {k: str(v) for k, v in service["environment"].items() if k.startswith("PALATE_")}
        values = {k: re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", v) for k, v in values.items()}
        assert ServingConfig.from_env(values).home, name


def test_every_command_exists(ours: dict[str, dict[str, Any]]) -> None:
    root = get_command(build_root())
    text = FILE.read_text(encoding="utf-8")
    used = set(re.findall(r"\bpalate (migrate|seed|controller|learner|\w+)\b", text)) & set(root.commands)  # type: ignore[attr-defined]
    started = {service["command"][1] for service in ours.values() if service["command"][0] == "palate"}
    assert started <= set(root.commands)  # type: ignore[attr-defined]
    assert started | used >= {"migrate", "controller", "seed"}
    assert ours["exporter"]["command"] == ["python", "-m", "serving.cluster.exporter"]


def test_every_mounted_file_exists(services: dict[str, dict[str, Any]], made: dict[str, bytes]) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                path = (FILE.parent / source).resolve()
                assert path.exists() or path.name == "secrets", f"{name}: {source}"
    assert {path.removeprefix("secrets/") for path in made if path.startswith("secrets/")} == set(mounted_files())


def test_ours_run_with_as_little_as_in_a_cluster(ours: dict[str, dict[str, Any]]) -> None:
    assert set(ours) == {"mlflow", "migrate", "seed", "palate", "exporter", "controller"}
    for name, service in ours.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "user" not in service, f"{name}: the image's user is none but its own"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_prometheus_scrapes_the_ports_that_listen(services: dict[str, dict[str, Any]]) -> None:
    jobs = yaml.safe_load((FILE.parent / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for job in jobs for config in job["static_configs"] for target in config["targets"]}
    controller = services["controller"]["environment"]["PALATE_CONTROLLER_PORT"]
    assert targets == {f"exporter:{EXPORTER_PORT}", f"controller:{controller}", "palate:8080"}
    assert all(target.split(":")[0] in services for target in targets)
    script = (FILE.parent / "compose" / "serve.sh").read_text()
    assert "--metrics-export-port=8080" in script


def test_the_serve_config_is_one_that_ray_accepts_and_names_what_exists() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load((FILE.parent / "compose" / "serve.yaml").read_text()))
    assert [(app.name, app.import_path) for app in config.applications] == [
        ("palate", "serving.cluster.applications:endpoint"),
        ("palate-deployer", "serving.cluster.applications:deployer"),
    ]
    import serving.cluster.applications as module

    for app in config.applications:
        assert callable(getattr(module, app.import_path.partition(":")[2]))
    router = config.applications[0].deployments[0]
    assert router.name == "Router"
    assert router.max_ongoing_requests >= Limits().max_queue


def test_the_script_is_a_shell_script() -> None:
    script = FILE.parent / "compose" / "serve.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_a_fresh_secret_is_one_that_the_processes_take(tmp_path: Path) -> None:
    from registry.database import migrate, open_database
    from serving.secret_files import ensure_trace_secret, ensure_webhook_secret
    from serving.store.people import ensure_people_secret

    values = yaml.safe_load(secret_manifest("palate"))["stringData"]
    assert yaml.safe_load(secret_manifest("palate"))["stringData"]["trace-secret"] != values["trace-secret"]
    for name, text in values.items():
        (tmp_path / name).write_text(text)
    home = tmp_path / "home"
    assert ensure_trace_secret(home, tmp_path).hex() == values["trace-secret"]
    assert ensure_people_secret(home, tmp_path).hex() == values["people-secret"]
    assert ensure_webhook_secret(home, tmp_path) == values["webhook-secret"]
    assert not home.exists()
    url = f"sqlite:///{tmp_path / 'p.db'}"
    migrate(url)
    keys = ApiKeys(open_database(url))
    keys.accept_first_key(values["api-key"])
    keys.accept_first_key(values["api-key"])
    assert keys.authenticate(f"Bearer {values['api-key']}").name == "first"
    [entry] = keys.entries()
    keys.revoke(entry.id)
    keys.accept_first_key(values["api-key"])
    assert keys.entries()[0].revoked_at is not None
