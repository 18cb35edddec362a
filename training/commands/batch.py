"""palate generate-batch: a language model over a whole file, offline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.errors import BadRequest
from training.commands import HomeOption, JsonOption, console, notes, one_line_errors, print_json
from training.config import TrainingConfig
from training.progress import Progress

if TYPE_CHECKING:
    from serving.ports import LanguageModel
    from training.batch.generate import Wish

commands = typer.Typer()


@dataclass(frozen=True, slots=True)
class _Job:
    inputs: Path
    output: Path
    concurrency: int
    restart: bool
    retry_errors: bool


@dataclass(slots=True)
class _Counts:
    before: int = 0
    answered: int = 0
    errors: int = 0
    tokens: int = 0


@commands.command("generate-batch")
@one_line_errors()
def generate_batch(
    inputs: Annotated[Path, typer.Option("--input", help="JSON lines with `prompt` or `messages`, and perhaps `id`.")],
    output: Annotated[Path, typer.Option("--output", help="JSON lines, one for each input, in its order.")],
    app: Annotated[str | None, typer.Argument(help="An app of the running platform, retrieval included.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Or a model: `tiny`, a folder, a name; with --url the server's.")
    ] = None,
    url: Annotated[
        str, typer.Option(help="An OpenAI-compatible server, with its /v1; none: vLLM in this process.")
    ] = "",
    key_env: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "",
    system: Annotated[str, typer.Option(help="The system message of inputs that have none.")] = "",
    schema: Annotated[Path | None, typer.Option(help="JSON schema that every answer has to satisfy.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of draws at a temperature above 0.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once: the server's batch.", min=1)] = 32,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; the old file is kept as .previous.")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Ask anew for lines that are errors.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer every line of a file, with exactly one line each.

    Started again after it was stopped or killed, it goes on where it was. A line that cannot be answered says why
    (`error`), and the others go on; `--retry-errors` asks for those lines again.
    """
    from training.batch.generate import Wish

    if (app is None) == (model is None):
        raise BadRequest("name either an app or a --model", field="model")
    wish = Wish(system, _schema(schema), max_tokens, temperature, seed)
    connected = _model(app, model, url, key_env, TrainingConfig.from_env(home).home)
    job = _Job(inputs, output, concurrency, restart, retry_errors)
    counts = asyncio.run(_run(connected, wish, job, app or str(model)))
    if as_json:
        print_json({"output": str(output), "before": counts.before, "answered": counts.answered,
                    "errors": counts.errors, "tokens": counts.tokens})  # fmt: skip
    else:
        console.print(
            f"  {output}: {counts.before:,} lines were there, {counts.answered:,} answered, {counts.errors:,} errors, "
            f"{counts.tokens:,} tokens written", highlight=False,
        )  # fmt: skip


def _schema(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"the schema {file} cannot be read: {error}", field="schema") from None
    if not isinstance(found, dict):
        raise BadRequest(f"the schema {file} has to be a JSON object", field="schema")
    return found


def _model(
    app: str | None, model: str | None, url: str, key_env: str, home: Path
) -> AbstractAsyncContextManager[LanguageModel]:
    from serving.client import endpoint_of
    from serving.local.home import Home
    from training.batch.connect import own_model, read_key, server_model

    if app is not None:
        address, key = endpoint_of(Home(home))
        return server_model(f"{address.rstrip('/')}/v1", app, key)
    assert model is not None
    return server_model(url, model, read_key(key_env)) if url else own_model(model, home)


async def _run(connected: AbstractAsyncContextManager[LanguageModel], wish: Wish, job: _Job, name: str) -> _Counts:
    from training.batch.ask import Asker
    from training.batch.file import Entry
    from training.batch.generate import PromptWorker, count_inputs, read_inputs
    from training.batch.run import ERROR, run_again, run_batch

    counts, total = _Counts(), count_inputs(job.inputs)
    async with connected as model:
        worker = PromptWorker(Asker(model, job.concurrency), wish)
        with Progress("generate-batch", notes).step(name, total) as report:

            def told(_: Entry, fields: Mapping[str, Any]) -> None:
                counts.errors += ERROR in fields
                counts.answered += ERROR not in fields
                counts.tokens += fields.get("usage", {}).get("completion_tokens", 0)
                report(counts.answered + counts.errors)

            entries = read_inputs(job.inputs)
            if job.retry_errors:
                counts.before = await run_again(entries, job.output, worker, told)
            else:
                counts.before = await run_batch(entries, job.output, worker, job.restart, told)
    return counts
