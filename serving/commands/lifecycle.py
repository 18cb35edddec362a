"""palate up, down, status, apps: the platform on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from serving.client import PalateClient
from serving.commands import HomeOption, JsonOption, console, home_of
from serving.local import screen
from serving.local.down import stop_running
from serving.local.home import Home, Running, SetupError
from serving.schema import find_app, load_app_spec

DETACHED = "PALATE_DETACHED"
DEFAULT_APPS = ("wine-orders", "packages")


def register(commands: typer.Typer) -> None:
    for command in (up, down, status, apps):
        commands.command()(command)


def up(
    app: Annotated[
        list[str] | None, typer.Option("--app", help="An example's name or a folder with an app.yaml; repeatable.")
    ] = None,
    port: Annotated[
        int, typer.Option(envvar="PALATE_PORT", help="Port of the endpoint, on 127.0.0.1.", min=1, max=65535)
    ] = 8000,
    mlflow_port: Annotated[int | None, typer.Option(help="Port of the MLflow UI; default: port + 1.")] = None,
    home: HomeOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready; stop with `palate down`.")] = False,
    replicas: Annotated[int, typer.Option(help="Router replicas.", min=1)] = 1,
    learner: Annotated[
        bool, typer.Option("--learner/--no-learner", help="Start training runs when app.yaml says they are due.")
    ] = True,
    num_gpus: Annotated[int | None, typer.Option(help="GPUs Ray may give out; default: those there are.")] = None,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs Ray may give out; default: twice the cores.")] = None,
) -> None:
    """Start MLflow, Ray and the endpoint here, with the example apps; the first start builds their releases."""
    place = home_of(home)
    folders = [find_app(name) for name in (app or DEFAULT_APPS)]
    for folder in folders:
        load_app_spec(folder)
    if detach:
        running = _detach(place)
        screen.show(place, running, [load_app_spec(folder) for folder in folders], console)
        return
    from serving.local.up import UpOptions, run_up

    options = UpOptions(place, folders, port, mlflow_port or port + 1, num_cpus, num_gpus, replicas, learner)
    specs = [load_app_spec(folder) for folder in folders]
    run_up(
        options,
        say=lambda text: console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False),
        # In the background the screen is shown by whoever waits for it: a log must not hold the key.
        ready=lambda running: None if DETACHED in os.environ else screen.show(place, running, specs, console),
    )


def down(home: HomeOption = None) -> None:
    """Stop everything `palate up` started in this home, and only that."""
    place = home_of(home)
    console.print(stop_running(place))


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What runs in this home, and whether it is ready. Exit status 1 when it is not."""
    place = home_of(home)
    running = place.running()
    body: dict[str, Any] = {"home": str(place.root), "running": running is not None, "ready": False, "problems": {}}
    if running is not None:
        body |= {"pid": running.pid, "url": running.url, "mlflow": running.mlflow_url, "apps": list(running.apps)}
        body |= place.deployments()
        body["learner"] = place.learner()
        try:
            body |= httpx.get(f"{running.url}/readyz", timeout=5).json()
        except (httpx.TransportError, ValueError):
            body["problems"] = {"endpoint": "it does not answer"}
    if as_json:
        console.print_json(data=body)
    else:
        screen.show_status(body, console)
    if not body["ready"]:
        raise typer.Exit(1)


def apps(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The apps that the endpoint serves, with the release of each."""
    with PalateClient.of_home(home_of(home)) as client:
        listed = client.apps()
    if as_json:
        console.print_json(data=listed)
        return
    table = Table("app", "release", "items", "description", box=None)
    for entry in listed:
        release = str(entry.get("release", "-"))
        table.add_row(
            entry["name"], release, f"{entry.get('items', 0):,}", entry.get("description") or entry.get("problem")
        )
    console.print(table)


def _detach(home: Home) -> Running:
    """Run the same command in the background, show its progress, return when it is ready."""
    home.prepare()
    arguments = [a for a in sys.argv[1:] if a != "--detach"]
    log = home.logs / "up.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PALATE_HOME": str(home.root), "PYTHONUNBUFFERED": "1", DETACHED: "1"},
        )  # fmt: skip
    shown = 0
    while process.poll() is None:
        running = home.running()
        if running is not None and running.pid == process.pid and running.ready:
            return running
        shown = _show_new(log, shown)
        time.sleep(0.2)
    _show_new(log, shown)
    raise SetupError(f"it did not start; {log} has the whole story")


def _show_new(log: Path, shown: int) -> int:
    with log.open("rb") as stream:
        stream.seek(shown)
        new = stream.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(new)
