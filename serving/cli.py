"""The `palate` command. The root is assembled from the entry points `palate.commands`: each package owns its own."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from registry.errors import RegistryError
from serving.commands import chat, controller, data, derive, doctor, keys, kserve_server, lifecycle, migrate, rollout
from serving.errors import PalateError
from serving.local.home import SetupError

HELP = """Serve search, ranking and generation over your own catalogue.

Start with `palate up`: it serves the example apps on this machine and prints a curl line for each.
State lives in PALATE_HOME (default ~/.palate); the key it makes there is used by these commands by themselves.
"""

commands = typer.Typer()
for module in (lifecycle, data, chat, keys, derive, controller, rollout, migrate, doctor, kserve_server):
    module.register(commands)


def build_root() -> typer.Typer:
    """The root command with every package's commands on its top level."""
    root = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)

    @root.callback()
    def _root(
        show_version: Annotated[
            bool,
            typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
        ] = False,
    ) -> None:
        """Only options: the commands come from the entry points."""

    for entry in sorted(entry_points(group="palate.commands"), key=lambda e: e.name):
        root.add_typer(entry.load())
    return root


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palate {version('palate')}")
        raise typer.Exit


def main() -> None:
    """Errors a person can act upon are one line on stderr and status 1; anything else is a bug and shows its trace."""
    try:
        build_root()(prog_name="palate")
    except (PalateError, RegistryError, SetupError) as error:
        text = escape(str(error))  # its brackets are no markup
        Console(stderr=True).print(f"[bold red]palate:[/] {text}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        Console(stderr=True).print(
            f"[bold red]palate:[/] the library {error.name!r} is missing: run scripts/install", highlight=False
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
