"""The commands of the query side, one module per subject; `serving.cli` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serving.local.home import Home

HomeOption = Annotated[Path | None, typer.Option("--home", envvar="PALATE_HOME", help="Folder of all local state.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

console = Console(soft_wrap=True)


def home_of(path: Path | None) -> Home:
    return Home((path or Path.home() / ".palate").expanduser().absolute())
