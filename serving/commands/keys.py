"""palate keys: who may call the endpoint."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from registry.database import migrate, open_database
from serving.commands import HomeOption, JsonOption, console, home_of
from serving.config import ServingConfig
from serving.keys import ApiKeys


def register(commands: typer.Typer) -> None:
    group = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_keys)
    group.command("revoke")(revoke)
    commands.add_typer(group, name="keys")


def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    scope: Annotated[list[str], typer.Option("--scope", help="query, feedback, items, pin or admin; repeatable.")],
    app: Annotated[list[str] | None, typer.Option("--app", help="Only these apps; repeatable. Default: all.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    burst: Annotated[float | None, typer.Option(help="Requests at once.")] = None,
    home: HomeOption = None,
) -> None:
    """Make a key. It is printed once and stored only as a hash."""
    new = _keys(home).create(name, scope, app, rate, burst)
    console.print(new.plaintext, highlight=False)


def list_keys(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Every key without its secret, revoked ones too."""
    entries = _keys(home).entries()
    if as_json:
        console.print_json(
            data=[
                {"id": k.id, "name": k.name, "scopes": sorted(k.scopes), "apps": sorted(k.apps) if k.apps else None,
                 "rate_per_s": k.rate_per_s, "created_at": k.created_at, "revoked_at": k.revoked_at}
                for k in entries
            ]
        )  # fmt: skip
        return
    table = Table("id", "name", "scopes", "apps", "created", "revoked", box=None)
    for key in entries:
        day = time.strftime("%Y-%m-%d", time.gmtime(key.created_at))
        apps = ", ".join(sorted(key.apps)) if key.apps else "all"
        table.add_row(key.id, key.name, ", ".join(sorted(key.scopes)), apps, day, "yes" if key.revoked_at else "")
    console.print(table)


def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `palate keys list` shows.")], home: HomeOption = None
) -> None:
    """Refuse a key from now on, everywhere within seconds."""
    _keys(home).revoke(key_id)
    console.print(f"Key {key_id} is revoked.")


def _keys(home: HomeOption) -> ApiKeys:
    place = home_of(home)
    place.prepare()
    config = ServingConfig.from_env().model_copy(update={"home": place.root})
    migrate(config.database)
    return ApiKeys(open_database(config.database))
