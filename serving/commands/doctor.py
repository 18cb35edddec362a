"""palate doctor: what is wrong with this installation, and the fix."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from registry.config import RegistryConfig
from serving.commands import HomeOption, JsonOption, console, home_of
from serving.config import ServingConfig

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def register(commands: typer.Typer) -> None:
    commands.command()(doctor)


def doctor(
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="As a pod: PALATE_* says where everything is, nothing runs in home.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check versions, home, keys, database, MLflow, Ray, endpoint, metrics, clocks, disk and GPUs; say what to mend.

    Exit status 1 when something failed; warnings leave it 0. Looks elsewhere with PALATE_URL (the endpoint),
    PALATE_METRICS_URL, PALATE_RAY_DASHBOARD and PALATE_CHROMA_URL.
    """
    from serving.doctor import Place, examine  # MLflow's client and the database: other commands start without them

    place = home_of(home)
    running = None if in_cluster else place.running()
    config = ServingConfig.from_env().model_copy(update={"home": place.root})
    mlflow = config.mlflow_uri or RegistryConfig.from_env({"PALATE_HOME": str(place.root)}).mlflow_uri
    if running is not None:
        config = config.model_copy(update={"apps": config.apps or running.apps})
        mlflow = config.mlflow_uri or running.mlflow_url
    where = Place(
        config,
        mlflow,
        endpoint=os.environ.get("PALATE_URL", running.url if running else ""),
        metrics=os.environ.get("PALATE_METRICS_URL", ""),
        dashboard=os.environ.get("PALATE_RAY_DASHBOARD", ""),
        chroma=os.environ.get("PALATE_CHROMA_URL", ""),
        in_cluster=in_cluster,
    )
    found = []
    for finding in examine(where):
        found.append(finding)
        if not as_json:
            mark = f"[{COLOURS[finding.state]}]{finding.state:>8}[/]"
            console.print(f"{mark}  {finding.name}: {escape(finding.detail)}", highlight=False)
            if finding.fix and finding.state != "ok":
                console.print(f"          fix: {escape(finding.fix)}", highlight=False)
    failed = any(finding.state == "failed" for finding in found)
    if as_json:
        console.print_json(data={"ok": not failed, "findings": [asdict(finding) for finding in found]})
    if failed:
        raise typer.Exit(1)
