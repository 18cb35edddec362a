"""palate query, feedback, items: an app's endpoint from the shell."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from registry.files import replace_file
from serving.client import PalateClient
from serving.commands import HomeOption, JsonOption, console, home_of
from serving.errors import BadRequest, Overloaded
from serving.local.home import Home

BATCH = 500
BATCH_BYTES = 2 * 2**20
"""A batch of long items ends sooner: an endpoint takes 8 MiB at once."""
LEAST_WAIT_S, LONGEST_WAIT_S = 0.1, 60.0
PATIENCE_S = 600.0
"""How long a load waits for an endpoint that is too busy for one batch."""


def register(commands: typer.Typer) -> None:
    commands.command()(query)
    commands.command()(feedback)
    items = typer.Typer(help="List, load and delete an app's catalogue.", no_args_is_help=True)
    items.command("list")(list_items)
    items.command("load")(load_items)
    items.command("delete")(delete_items)
    commands.add_typer(items, name="items")


def query(
    app: str,
    text: Annotated[str, typer.Argument(help="What to search for; `-` reads it from standard input.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1)] = 5,
    filters: Annotated[str, typer.Option("--filters", help='JSON: {"price": {"lte": 30000}}.')] = "{}",
    user: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an app."""
    try:
        parsed = json.loads(filters)
    except ValueError as error:
        raise BadRequest(f"--filters is not JSON: {error}", field="filters") from None
    said = sys.stdin.read() if text == "-" else text
    # The results alone: `palate chat` answers
    body: dict[str, Any] = {"query": said, "top_k": top_k, "filters": parsed, "generate": False}
    if user:
        body["user"] = user
    with PalateClient.of_home(home_of(home)) as client:
        answer = client.query(app, body)
    if as_json:
        console.print_json(data=answer)
        return
    for line in answer.get("lines") or [answer]:
        if "text" in line:
            amount = f"{line['quantity']} {line['unit'] or ''}".strip() if line["quantity"] else "no quantity"
            console.print(f"[bold]{escape(line['text'])}[/]  ({amount})", highlight=False)
        console.print(_results(line["results"], line["abstained"]))
    took = answer["timings_ms"]["total"]
    console.print(f"[dim]release {answer['release']}, {took:.1f} ms, trace {answer['trace_id']}[/]", highlight=False)


def feedback(
    app: str,
    trace_id: Annotated[str, typer.Argument(help="The trace id of the answer.")],
    event: Annotated[str, typer.Argument(help="select, click, order, reject, … as the app names them.")],
    item: Annotated[str | None, typer.Option("--item", help="The item chosen.")] = None,
    rejected: Annotated[list[str] | None, typer.Option("--rejected", help="Items turned down; repeatable.")] = None,
    line: Annotated[int, typer.Option(min=0, help="Which line of an order text, from 0.")] = 0,
    user: Annotated[str | None, typer.Option(help="Default: the user of the query.")] = None,
    home: HomeOption = None,
) -> None:
    """Tell an app what a user did with its answer."""
    body: dict[str, Any] = {"trace_id": trace_id, "event": event, "rejected": rejected or [], "line": line}
    body |= {name: value for name, value in (("item_id", item), ("user", user)) if value}
    with PalateClient.of_home(home_of(home)) as client:
        console.print_json(data=client.feedback(app, body))


def list_items(
    app: str,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    cursor: Annotated[str | None, typer.Option(help="next_cursor of the page before.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A page of the catalogue, in id order."""
    with PalateClient.of_home(home_of(home)) as client:
        page = client.items(app, limit, cursor)
    if as_json:
        console.print_json(data=page)
        return
    table = Table("id", "fields", "attributes", box=None)
    for item in page["items"]:
        table.add_row(escape(item["id"]), _short(item["fields"]), _short(item["attributes"]))
    console.print(table)
    if page["next_cursor"]:
        console.print(f"[dim]more: --cursor {page['next_cursor']}[/]")


def load_items(
    app: str,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines: {id, fields, attributes}.")],
    home: HomeOption = None,
) -> None:
    """Upsert a file's items. Stopped half-way, the same command goes on where it was."""
    place = home_of(home)
    size = file.stat().st_size
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with PalateClient.of_home(place) as client, Progress(*columns, console=console) as bar, file.open("rb") as stream:
        progress_file = _Resume(place, client.url, app, file)
        done = progress_file.read()
        stream.seek(done.offset)
        task = bar.add_task(f"{app}: {done.items:,} items", total=size, completed=done.offset)
        for batch in _batches(stream, done.line):
            patiently(partial(client.put_items, app, batch.items), partial(bar.console.print, markup=False))
            done = _Done(batch.end, batch.last_line, done.items + len(batch.items))
            progress_file.write(done)
            bar.update(task, completed=batch.end, description=f"{app}: {done.items:,} items")
    progress_file.clear()
    console.print(f"{done.items:,} items of {file} are in {app}.", markup=False, highlight=False)


def patiently(
    send: Callable[[], object], say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Calls `send` until the endpoint is not too busy for it, each time after the seconds it asked to wait. Raises
    Overloaded where that takes longer than PATIENCE_S, and what else `send` raises."""
    waited = 0.0
    while True:
        try:
            send()
            return
        except Overloaded as error:
            wait_s = min(max(error.retry_after_s, LEAST_WAIT_S), LONGEST_WAIT_S)
            if waited + wait_s > PATIENCE_S:
                raise
            if not waited:
                say(f"the endpoint is busy: waiting as it asks ({error.detail})")
            waited += wait_s
            sleep(wait_s)


def delete_items(app: str, ids: list[str], home: HomeOption = None) -> None:
    """Delete items by id."""
    with PalateClient.of_home(home_of(home)) as client:
        console.print_json(data=client.delete_items(app, ids))


class _Done:
    """How far a load came: byte offset, line number and items."""

    def __init__(self, offset: int = 0, line: int = 0, items: int = 0) -> None:
        self.offset, self.line, self.items = offset, line, items


class _Batch:
    def __init__(self, items: list[dict[str, Any]], end: int, last_line: int) -> None:
        self.items, self.end, self.last_line = items, end, last_line


def _batches(stream: Any, line: int) -> Iterator[_Batch]:
    items: list[dict[str, Any]] = []
    size = 0
    for raw in iter(stream.readline, b""):
        line += 1
        size += len(raw)
        if raw.strip():
            try:
                item = orjson.loads(raw)
            except ValueError as error:
                raise BadRequest(f"line {line} is not JSON: {error}; correct it and run the same command") from None
            items.append(item)
        if items and (len(items) == BATCH or size > BATCH_BYTES):
            yield _Batch(items, stream.tell(), line)
            items, size = [], 0
    if items:
        yield _Batch(items, stream.tell(), line)


class _Resume:
    """Remembers how far the load of one file into one app of one endpoint came. A changed file starts anew."""

    def __init__(self, home: Home, url: str, app: str, file: Path) -> None:
        stat = file.stat()
        identity = f"{url}\0{app}\0{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        self._path = home.run / f"load-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"

    def read(self) -> _Done:
        try:
            return _Done(**json.loads(self._path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Done()

    def write(self, done: _Done) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps({"offset": done.offset, "line": done.line, "items": done.items}))

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


def _results(results: list[dict[str, Any]], abstained: bool) -> Table:
    table = Table("", "id", "score", "source", "fields", box=None)
    for number, result in enumerate(results, 1):
        mark = "?" if abstained else str(number)
        source = escape(result["source"])
        table.add_row(mark, escape(result["id"]), f"{result['score']:.3f}", source, _short(result["fields"]))
    return table


def _short(fields: dict[str, Any]) -> str:
    """Values as one line of a table; their brackets are no markup."""
    return escape(" | ".join(str(value) for value in fields.values() if value is not None)[:100])
