"""The commands of training, one module per subject; `training.cli` puts them together.

What is heavy (MLflow, Chroma, torch, Ray) is imported by the command that needs it: every `palate` command loads these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from training.config import TrainingConfig
from training.errors import TrainingError

if TYPE_CHECKING:
    from registry.database import Database
    from registry.ports import ReleaseStore

HomeOption = Annotated[Path | None, typer.Option("--home", envvar="PALATE_HOME", help="Folder of all local state.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

console = Console(soft_wrap=True)
notes = Console(soft_wrap=True, stderr=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a person can correct is one line and status 1. The root command does so for the errors of serving."""
    try:
        yield
    except TrainingError as error:
        typer.echo(f"palate: {error}", err=True)
        raise typer.Exit(1) from None


def mlflow_uri(config: TrainingConfig) -> str:
    from registry.config import RegistryConfig

    return config.serving.mlflow_uri or RegistryConfig.from_env({"PALATE_HOME": str(config.home)}).mlflow_uri


def open_releases(config: TrainingConfig) -> ReleaseStore:
    from registry.mlflow_store import MlflowStore

    return MlflowStore(mlflow_uri(config))


def open_migrated(config: TrainingConfig) -> Database:
    """The database, with its schema brought up to date."""
    from registry.database import migrate, open_database

    migrate(config.serving.database)
    return open_database(config.serving.database)


def print_json(value: Mapping[str, Any]) -> None:
    """To stdout as it is: neither wrapped nor coloured."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
