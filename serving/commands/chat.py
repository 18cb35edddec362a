"""palate chat: talk with an app in the terminal; answers come as they are made."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.markup import escape

from serving.client import PalateClient
from serving.commands import HomeOption, console, home_of
from serving.errors import PalateError, StoreUnavailable

HELP = "/results: what was found, /new: another session, /quit or Ctrl-D: leave; Ctrl-C ends an answer."


def register(commands: typer.Typer) -> None:
    commands.command()(chat)


def chat(
    app: str,
    session: Annotated[str | None, typer.Option(help="Go on with this session; default: a new one.")] = None,
    user: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    form: Annotated[str | None, typer.Option(help="A form of the answer, as the app names them.")] = None,
    home: HomeOption = None,
) -> None:
    """Talk with an app: what it finds, in its own words, with the session's memory."""
    with PalateClient.of_home(home_of(home)) as client:
        talk = _Talk(client, app, session, {"user": user, "generate": form})
        console.print(f"[bold]{escape(app)}[/], session {talk.session}. [dim]{HELP}[/]", highlight=False)
        for line in _lines():
            if line == "/quit":
                break
            if line == "/new":
                talk = _Talk(client, app, None, talk.beside)
                console.print(f"[dim]session {talk.session}[/]", highlight=False)
            elif line == "/results":
                talk.show_results()
            elif line.startswith("/"):
                console.print(f"[dim]{HELP}[/]", highlight=False)
            else:
                talk.ask(line)


def _lines() -> Iterator[str]:
    """What the person types, until the end of input. Ctrl-C on an empty prompt starts the line again."""
    while True:
        try:
            line = console.input("[bold cyan]>[/] ").strip()
        except KeyboardInterrupt:
            console.print()
            continue
        except EOFError:
            console.print()
            return
        if line:
            yield line


class _Talk:
    """One session. `beside`: what goes with each query; members that are None are left away."""

    def __init__(self, client: PalateClient, app: str, session: str | None, beside: Mapping[str, Any]) -> None:
        self.session = session or secrets.token_hex(6)
        self.beside = beside
        self._client = client
        self._app = app
        self._results: list[dict[str, Any]] = []

    def ask(self, text: str) -> None:
        """Print the answer as it comes. What goes wrong is said, and the talk goes on."""
        body = {"query": text, "session": self.session, **{k: v for k, v in self.beside.items() if v is not None}}
        try:
            with closing(self._client.stream_query(self._app, body)) as events:
                for name, data in events:
                    if name == "results":
                        self._results = data["results"]
                    elif name == "text":
                        console.print(data["text"], end="", markup=False, highlight=False)
                    elif name == "done":
                        console.print(f"\n{_footnote(data)}", highlight=False)
        except KeyboardInterrupt:
            console.print("\n[dim]ended[/]")
        except PalateError as error:
            console.print(f"\n[bold red]{escape(error.title)}:[/] {escape(error.detail)}", highlight=False)
            if isinstance(error, StoreUnavailable):
                console.print("[dim]try again in a moment[/]")

    def show_results(self) -> None:
        for number, result in enumerate(self._results, start=1):
            fields = json.dumps(result["fields"], ensure_ascii=False)
            console.print(
                f"{number}. [bold]{escape(result['id'])}[/] {result['score']:.3f} {escape(fields)}", highlight=False
            )
        if not self._results:
            console.print("[dim]nothing was found[/]")


def _footnote(body: Mapping[str, Any]) -> str:
    """Who answered, from how much, how fast, and what was wrong."""
    answer, took_ms = body["answer"], body["timings_ms"]["total"]
    parts = [f"release {body['release']}", f"{len(body['results'])} results", f"{took_ms:.0f} ms",
             f"{answer['usage']['completion_tokens']} tokens"]  # fmt: skip
    if understood := body.get("understood"):
        parts.append(f"{understood['intent'] or 'no intent'} {understood['confidence']:.2f}")
    if answer["fallback"]:
        parts.append(f"from the template: {answer['fallback']}")
    elif answer["repaired"]:
        parts.append(f"repaired {answer['repaired']}x")
    if not (session := body.get("session", {"recalled": True, "kept": True}))["recalled"] or not session["kept"]:
        parts.append("without memory: its store is away")
    return f"[dim]{escape(', '.join(parts))}[/]"
