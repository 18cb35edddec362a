"""What a manifest names, the code has: commands, environment variables, ports, probes, files, secrets, images."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer
import yaml
from fastapi import APIRouter

from registry.config import RegistryConfig
from serving.cli import build_root
from serving.cluster.secrets import secret_manifest
from serving.config import Limits, ServingConfig
from serving.ingress import asgi
from tests.chart.rendering import CHART, PROFILES, ROOT, Pod, name_of, of_kind, pods, rendered

pytestmark = pytest.mark.parametrize("profile", PROFILES)

FOREIGN = "docker.io/"  # PostgreSQL's image, which is not ours
OF_KSERVE = "serving.kserve.io/inferenceservice"  # a label that KServe puts on its pods


def ours(profile: str) -> list[tuple[Pod, dict[str, Any]]]:
    """Containers that run our image."""
    found = [(pod, container) for pod in pods(rendered(profile)) for container in pod.containers]
    return [(pod, container) for pod, container in found if not container["image"].startswith(FOREIGN)]


def command_lines(profile: str) -> Iterator[list[str]]:
    for _, container in ours(profile):
        if "command" in container:
            yield [*container["command"], *container.get("args", ())]
        if hook := container.get("lifecycle", {}).get("preStop"):
            yield hook["exec"]["command"]
    for job in [*of_kind(rendered(profile), "RayJob"), *of_kind(rendered(profile), "RayCronJob")]:
        yield shlex.split(job["spec"].get("jobTemplate", job["spec"])["entrypoint"])


def test_every_command_is_one_that_the_code_takes(profile: str) -> None:
    lines = list(command_lines(profile))
    assert lines
    for line in lines:
        check_command(line)


def check_command(line: list[str]) -> None:
    """Raises click's UsageError, or AssertionError."""
    program, *arguments = line
    if program == "palate":
        command, context = typer.main.get_command(build_root()), None
        while isinstance(command, click.Group):
            assert arguments[0] in command.commands, f"there is no `palate {arguments[0]}`"
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context("palate", arguments, parent=context, resilient_parsing=False)
    elif line[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(line[2]) is not None, line
    elif program == "mlflow":
        check_mlflow(arguments)
    elif program.endswith("/chroma"):
        shown = subprocess.run(
            [Path(sys.executable).parent / "chroma", "run", "--help"], capture_output=True, text=True
        )
        assert {part for part in arguments if part.startswith("--")} <= set(re.findall(r"--[a-z]+", shown.stdout))
    else:
        assert program in ("bash", "sleep"), line


def check_mlflow(arguments: list[str]) -> None:
    from mlflow.cli import cli

    server = cli.commands[arguments[0]]
    known = {option for parameter in server.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {part.split("=")[0] for part in arguments[1:]} <= known


def test_every_variable_is_read_by_somebody(profile: str) -> None:
    fields = {
        f"PALATE_{name.upper()}" for model in (ServingConfig, Limits, RegistryConfig) for name in model.model_fields
    }
    for pod, container in ours(profile):
        for name in (variable["name"] for variable in container.get("env", ())):
            assert name in fields or is_read(name), f"{pod}: nothing reads {name}"


@functools.cache
def is_read(name: str) -> bool:
    sources = {
        "MLFLOW_": ("mlflow", ["environment_variables.py", "cli/__init__.py"]),
        "VLLM_": ("vllm", ["envs.py"]),
        "RAY_SERVE_": ("ray", ["serve/_private/constants.py"]),
    }
    for prefix, (package, files) in sources.items():
        if name.startswith(prefix):  # read, not imported: vLLM alone takes seconds
            spec = importlib.util.find_spec(package)
            assert spec is not None
            folder = Path(str(spec.origin)).parent
            return any(f'"{name}"' in (folder / file).read_text(encoding="utf-8") for file in files)
    known = {"HOME", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "HF_HOME"}
    known |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    return name in known or name in own_sources()


@functools.cache
def own_sources() -> str:
    files = [path for package in ("serving", "registry", "training") for path in (ROOT / package).rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_the_settings_of_every_container_are_ones_that_the_code_takes(profile: str) -> None:
    for _, container in ours(profile):
        values = {v["name"]: v.get("value", "a-secret") for v in container.get("env", ())}
        if "PALATE_APPS" not in values:
            continue
        values["PALATE_DATABASE_URL"] = "postgresql://palate:x@db/palate"
        config = ServingConfig.from_env(values)
        assert config.apps
        assert str(config.home) in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(config.secrets) in {mount["mountPath"] for mount in container["volumeMounts"]}
        RegistryConfig.from_env(values)


def test_the_defaults_of_the_chart_are_those_of_the_code(profile: str) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    config = ServingConfig.from_env({})
    settled_elsewhere = {
        "home", "secrets", "database_url", "mlflow_uri", "apps", "ready_within_s", "controller_port", "webhook_url",
        "webhook_secret", "log", "limits", "kserve_namespace", "kubernetes_api",
    }  # fmt: skip
    expected = {name: getattr(config, name) for name in ServingConfig.model_fields if name not in settled_elsewhere}
    expected |= config.limits.model_dump()
    assert values == expected


def test_probes_and_services_lead_to_ports_that_are_there(profile: str) -> None:
    manifests = rendered(profile)
    for pod in pods(manifests):
        for container in pod.containers:
            named = {port["name"] for port in container.get("ports", ())}
            numbers = {port["containerPort"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe := container.get(kind, {}).get("httpGet"):
                    assert probe["port"] in named | numbers, f"{pod} {kind}"
    for service in of_kind(manifests, "Service"):
        selector = {key: value for key, value in service["spec"]["selector"].items() if key != OF_KSERVE}
        selected = [p for p in pods(manifests) if selector.items() <= p.labels.items()]
        assert selected, name_of(service)
        open_ports = {port["name"] for pod in selected for c in pod.containers for port in c.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= open_ports, name_of(service)


def test_monitors_ask_ports_that_are_there(profile: str) -> None:
    manifests = rendered(profile)
    open_ports = {port["name"] for pod in pods(manifests) for c in pod.containers for port in c.get("ports", ())}
    for monitor in of_kind(manifests, "PodMonitor"):
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= open_ports
    services = of_kind(manifests, "Service")
    for monitor in of_kind(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [s for s in services if wanted <= s["metadata"]["labels"].items()]
        names = {port["name"] for service in found for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


def test_policies_open_ports_that_somebody_listens_on(profile: str) -> None:
    manifests = rendered(profile)
    for policy in of_kind(manifests, "NetworkPolicy"):
        wanted = policy["spec"]["podSelector"].get("matchLabels", {}).items()
        selected = [pod for pod in pods(manifests) if wanted <= pod.labels.items()]
        listening = {port["containerPort"] for pod in selected for c in pod.containers for port in c.get("ports", ())}
        opened = {port["port"] for rule in policy["spec"].get("ingress", ()) for port in rule.get("ports", ())}
        assert opened <= listening, name_of(policy)


def test_probed_paths_are_served(profile: str) -> None:
    served = {
        "controller": ["/healthz", "/readyz"],
        "mlflow": ["/health"],
        "chroma": ["/api/v2/heartbeat"],
        "exporter": ["/metrics"],
        "kserve-container": ["/v2/health/live", "/readyz"],
    }
    for pod in pods(rendered(profile)):
        for container in pod.containers:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe := container.get(kind, {}).get("httpGet"):
                    assert probe["path"] in served[container["name"]], f"{pod} {kind}"


def test_the_paths_of_the_route_are_all_those_of_the_api_but_metrics(profile: str) -> None:
    modules = [module for module in vars(asgi).values() if isinstance(module, ModuleType)]
    routers = [module.routes for module in modules if isinstance(getattr(module, "routes", None), APIRouter)]
    paths = {route.path for router in routers for route in router.routes} | {"/openapi.json"}
    assert "/v1/apps/{app}/query" in paths
    for manifest in rendered(profile):
        if manifest["kind"] == "HTTPRoute":
            matches = [m["path"] for rule in manifest["spec"]["rules"] for m in rule["matches"]]
            opened = [(m["value"], m["type"] == "PathPrefix") for m in matches]
        elif manifest["kind"] == "Ingress":
            opened = [
                (p["path"], p["pathType"] == "Prefix") for r in manifest["spec"]["rules"] for p in r["http"]["paths"]
            ]
        else:
            continue
        reached = {
            path
            for path in paths
            for value, prefix in opened
            if path == value or (prefix and path.startswith(f"{value}/"))
        }
        assert paths - reached == {"/metrics"}
        assert {value for value, prefix in opened if not prefix} <= paths


def test_every_key_of_the_secret_is_documented_and_made_by_the_tool(profile: str) -> None:
    used: set[str] = set()
    for pod in pods(rendered(profile)):
        for volume in pod.spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                used |= {item["key"] for item in source["secret"]["items"]}
        for container in pod.containers:
            for variable in container.get("env", ()):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert reference["name"] == "palate"
                    used.add(reference["key"])
    readme = (CHART / "README.md").read_text()
    documented = set(
        re.findall(r"^\| `([a-z0-9-]+)` \|", readme.split("## The Secret")[1].split("\n## ")[0], re.MULTILINE)
    )
    assert used <= documented
    made = yaml.safe_load(secret_manifest("palate"))["stringData"]
    assert made.keys() <= documented
    optional = {"s3-access-key", "s3-secret-key", "postgres-password", "mlflow-database-url"}
    assert used <= made.keys() | optional


def test_files_named_in_manifests_are_in_the_image(profile: str) -> None:
    for line in command_lines(profile):
        for part in line:
            if part.startswith("/opt/palate/examples/"):
                app = ROOT / "examples" / part.removeprefix("/opt/palate/examples/")
                assert (app / "app.yaml").is_file(), part


def test_versions_are_those_of_the_lock_and_the_package(profile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert f"ray=={values['ray']['version']}" in (ROOT / "requirements" / "cpu.lock").read_text()
    tag = values["image"]["tag"] or chart["appVersion"]
    for _, container in ours(profile):
        assert f":{tag}" in container["image"] or "@sha256:" in container["image"]


def test_a_pod_has_time_to_drain(profile: str) -> None:
    """preStop first, then what the server needs to end; and no request may outlast the drain."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for service in of_kind(rendered(profile), "RayService"):
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            container = spec["containers"][0]
            drain_s = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
            settled = {v["name"]: v.get("value") for v in container["env"]}
            assert spec["terminationGracePeriodSeconds"] > drain_s + 10
            assert float(settled["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]) < drain_s
            assert float(settled["RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"]) + 10 <= drain_s
            config = yaml.safe_load(service["spec"]["serveConfigV2"])
            router = config["applications"][0]["deployments"][0]
            assert router["graceful_shutdown_timeout_s"] < drain_s
    for pod in pods(rendered(profile)):
        for container in pod.containers:
            if container["name"] != "kserve-container":
                continue
            waited_s = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
            drain_s = float(container["command"][container["command"].index("--drain-s") + 1])
            assert waited_s >= 10, "gateways learn late that a pod ends"
            assert drain_s == values["serving"]["drainS"], pod
            assert pod.spec["terminationGracePeriodSeconds"] > waited_s + drain_s + 10
