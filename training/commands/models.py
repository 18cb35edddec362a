"""palate models build: language models that need no network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serving.errors import BadRequest
from serving.schema.app_spec import EXAMPLES
from training.commands import HomeOption, JsonOption, console, notes, one_line_errors, print_json
from training.config import TrainingConfig
from training.models import TINY, tiny_folder
from training.progress import Progress

commands = typer.Typer()
models = typer.Typer(help="Language models that need no network.", no_args_is_help=True)
commands.add_typer(models, name="models")


@models.command()
@one_line_errors()
def build(
    name: Annotated[str, typer.Argument(help="Which: `tiny`.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the model; default: models/tiny in the home.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; fewer are quicker and worse.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Another seed makes another model.", min=0)] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a small language model for the examples, on the CPU, from what they make up themselves.

    It knows the examples' prompts and nothing else; see the README.md in its folder. A build that was killed is gone on
    with by starting it again. A model that is there is replaced.
    """
    from training.tiny.build import STEPS, Order
    from training.tiny.build import build as build_tiny

    if name != TINY:
        raise BadRequest(f"there is no model {name!r} to build; there is {TINY!r}", field="name")
    folder = out or tiny_folder(TrainingConfig.from_env(home).home)
    built = build_tiny(Order(folder, EXAMPLES, steps or STEPS, seed), Progress("models", notes))
    if as_json:
        print_json({**asdict(built), "folder": str(built.folder)})
        return
    console.print(
        f"  {built.folder}: {built.parameters / 1e6:.1f} M parameters, loss {built.loss:.3f}, {built.wall_s:.0f} s "
        f"({built.cpu_s:.0f} s of CPU)\n",
        highlight=False,
    )
    console.print(built.table, highlight=False, markup=False)
