"""palate migrate, palate seed: what an installation needs before it serves. The chart runs them as jobs; `palate up`
does the same by itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from registry.config import RegistryConfig
from registry.database import migrate, migrate_down, open_database
from registry.errors import RegistryUnavailable, ReleaseNotFound
from registry.ports import ReleaseStore
from serving.commands import console
from serving.config import ServingConfig
from serving.errors import BadRequest
from serving.keys import LOCAL_KEY_FILE, ApiKeys
from serving.schema import find_app, load_app_spec
from serving.secret_files import mounted_secret

PAUSE_S = 1.0
T = TypeVar("T")

WithinOption = Annotated[float, typer.Option("--within-s", help="How long to wait for what is away.", min=0)]


def register(commands: typer.Typer) -> None:
    commands.command("migrate")(migrate_command)
    commands.command()(seed)


def migrate_command(
    within_s: WithinOption = 120.0,
    down_to: Annotated[
        str | None, typer.Option("--down-to", help="Go back to this version of the schema; newer data is lost.")
    ] = None,
) -> None:
    """Bring the database's schema up to date, and register the API key that PALATE_SECRETS holds, if it holds one.

    Safe to run at any time and side by side: processes of the version before go on working with the new schema.
    """
    config = ServingConfig.from_env()
    if down_to is not None:
        patiently(lambda: migrate_down(config.database, down_to), within_s)
        console.print(f"The schema is at {down_to}.", highlight=False)
        return
    patiently(lambda: migrate(config.database), within_s)
    if config.secrets is not None and (config.secrets / LOCAL_KEY_FILE).exists():
        database = open_database(config.database)
        ApiKeys(database).accept_first_key(mounted_secret(config.secrets, LOCAL_KEY_FILE))
        database.close()
    console.print("The schema is up to date.", highlight=False)


def seed(apps: Annotated[list[Path], typer.Argument(help="Folders of apps.")], within_s: WithinOption = 300.0) -> None:
    """Build each app's first release where it has none, with the catalogue that items.source names: `palate index`,
    safe to repeat.

    For trials: an application keeps its own catalogue up to date with `PUT /v1/apps/APP/items`.
    """
    from registry.mlflow_store import MlflowStore  # MLflow's client: the other commands start without it

    config = ServingConfig.from_env()
    store = MlflowStore(config.mlflow_uri or RegistryConfig.from_env().mlflow_uri)
    for folder in (find_app(str(app)) for app in apps):
        name = load_app_spec(folder).name
        if patiently(lambda name=name: _has_stable(store, name), within_s):  # type: ignore[misc]
            console.print(f"{name}: has a release", highlight=False)
        elif subprocess.run([sys.executable, "-m", "serving.cli", "index", str(folder), "--promote"]).returncode:
            raise BadRequest(f"{name}: its release could not be built; the lines above say why")


def patiently(work: Callable[[], T], within_s: float) -> T:
    """What `work` returns. Raises RegistryUnavailable when what it needs is still away after `within_s`."""
    until = time.monotonic() + within_s
    while True:
        try:
            return work()
        except RegistryUnavailable as error:
            if time.monotonic() >= until:
                raise
            console.print(f"waiting: {error}", highlight=False)
            time.sleep(PAUSE_S)


def _has_stable(store: ReleaseStore, app: str) -> bool:
    try:
        store.get(app, "stable")
    except ReleaseNotFound:
        return False
    return True
