"""palate controller: the process that moves rollouts. `palate up` and the chart run it."""

from __future__ import annotations

import typer

from serving.config import ServingConfig


def register(commands: typer.Typer) -> None:
    commands.command()(controller)


def controller() -> None:
    """Move rollouts: follow MLflow's aliases, judge canaries, promote or roll back. Configured by PALATE_* variables.

    Runs until it is stopped. `palate up` runs one by itself; of several, one acts and the others wait.
    """
    from serving.controller import run_controller  # MLflow's client and scipy: the other commands start without them

    run_controller(ServingConfig.from_env())
