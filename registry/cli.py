"""`palate releases`: what was published, what serves, and what it was measured at.

Loaded by the root command through the entry point group `palate.commands`; calls `registry.mlflow_store`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from registry.config import RegistryConfig
from registry.errors import RegistryError
from registry.manifest import to_json
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion, version_or_alias


class _ListsByDefault(TyperGroup):
    """`palate releases APP` is `palate releases list APP`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["list", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(no_args_is_help=True)
releases = typer.Typer(no_args_is_help=True, cls=_ListsByDefault)
commands.add_typer(releases, name="releases", help="The releases of an app in MLflow: `palate releases APP`.")

App = Annotated[str, typer.Argument(help="The app: the name of its MLflow registered model.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for scripts instead of a table.")]


@releases.command("list")
def list_releases(app: App, as_json: AsJson = False) -> None:
    """List an app's releases, newest first."""
    with _one_line_errors():
        found = _store().versions(app)
        if not found and not as_json:
            raise RegistryError(f"{app} has no releases: `palate index {app}` builds and publishes the first")
    if as_json:
        typer.echo(json.dumps([_summary(v) for v in found], ensure_ascii=False))
        return
    heads = ("version", "aliases", "rollout", "created", "digest", "components", "metrics")
    table = Table(*heads, box=None, header_style="bold")
    for version in found:
        table.add_row(
            str(version.version),
            escape(", ".join(sorted(version.aliases))),
            escape("\n".join(_rollout(version).values())),
            _created(version),
            version.release.digest[:12],
            escape("\n".join(f"{c.name} {c.digest[:12]}" for c in version.release.components)),
            escape("\n".join(f"{name} {value:.4g}" for name, value in version.release.metrics.items())),
        )
    Console().print(table)


@releases.command("show")
def show_release(
    app: App,
    version: Annotated[str, typer.Argument(help="A version number, or an alias such as stable.")],
    as_json: AsJson = False,
) -> None:
    """Show one release in full: components, app spec, metrics, lineage and tags."""
    with _one_line_errors():
        found = _store().get(app, version_or_alias(version))
    whole = {**_summary(found), "release": to_json(found.release), "tags": dict(found.tags)}
    if as_json:
        typer.echo(json.dumps(whole, ensure_ascii=False))
        return
    console = Console()
    aliases = ", ".join(sorted(found.aliases)) or "no alias"
    console.print(f"[bold]{app} version {found.version}[/bold] ({escape(aliases)}), created {_created(found)}")
    console.print(f"digest {found.release.digest}, catalogue at sequence {found.release.items_seq}")
    table = Table("component", "role", "bytes", "digest", "fingerprint", box=None, header_style="bold")
    for part in found.release.components:
        row = (part.name, part.role, f"{part.size_bytes:,}", part.digest[:12], part.fingerprint[:24])
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    for title, values in (
        ("metrics", found.release.metrics),
        ("lineage", found.release.lineage),
        ("tags", found.tags),
        ("spec", found.release.spec),
    ):
        if values:
            console.print(f"[bold]{title}[/bold]")
            console.print_json(json.dumps(dict(values), ensure_ascii=False))


def _store() -> ReleaseStore:
    config = RegistryConfig.from_env()
    from registry.mlflow_store import MlflowStore

    return MlflowStore(config.mlflow_uri)


def _summary(version: ReleaseVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": sorted(version.aliases),
        "created": _created(version),
        "digest": version.release.digest,
        "components": {c.name: c.digest for c in version.release.components},
        "metrics": dict(version.release.metrics),
        "rollout": _rollout(version),
    }


def _rollout(version: ReleaseVersion) -> dict[str, str]:
    """What its last rollout left in its tags: how it stands, and why; {} for one that was never tried."""
    names = {"state": "palate.rollout", "reason": "palate.rollout.reason"}
    return {name: version.tags[tag] for name, tag in names.items() if version.tags.get(tag)}


def _created(version: ReleaseVersion) -> str:
    return datetime.fromtimestamp(version.created_s, UTC).isoformat(timespec="seconds")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except RegistryError as error:
        typer.echo(f"palate: {error}", err=True)
        raise typer.Exit(1) from None
