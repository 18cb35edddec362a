"""palate kserve-server: what the container of a KServe InferenceService runs."""

from __future__ import annotations

from typing import Annotated

import typer

from serving.config import ServingConfig


def register(commands: typer.Typer) -> None:
    commands.command("kserve-server")(kserve_server)


def kserve_server(
    app: Annotated[str, typer.Option(help="The app to serve.")],
    version: Annotated[
        str, typer.Option(envvar="PALATE_RELEASE", help="A version's number or an alias; it is kept until the end.")
    ] = "stable",
    port: Annotated[int, typer.Option(help="On all interfaces.", min=1, max=65535)] = 8080,
    drain_s: Annotated[int, typer.Option(help="Seconds that requests in flight have after SIGTERM.", min=0)] = 45,
) -> None:
    """Serve one release by KServe's protocols: /v2, the OpenAI protocol and /v1. Configured by PALATE_* variables.

    Probes: /v2/health/live and /readyz, which waits for the release. In a cluster the controller starts one per
    version, by the label palate.dev/release on the predictor, which the container reads as PALATE_RELEASE.
    """
    from serving.kserve_model import run_server  # kserve reads the command line when it is imported

    run_server(ServingConfig.from_env(), app, version, port, drain_s)
