"""`palate derive`: a new release of an app from one it has, with some settings changed and nothing rebuilt."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer
import yaml

from registry.config import RegistryConfig
from registry.derive import changed_spec, derive
from registry.mlflow_store import MlflowStore
from registry.schema import version_or_alias
from serving.commands import HomeOption, JsonOption, console, home_of
from serving.errors import BadRequest
from serving.schema import parse_app_spec

DRILL = "drill"


def register(commands: typer.Typer) -> None:
    commands.command("derive")(derive_command)


def derive_command(
    app: Annotated[str, typer.Argument(help="An app that has a release.")],
    base: Annotated[str, typer.Option("--from", help="The version or alias to start from.")] = "stable",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the app spec, e.g. retrieve.fusion.threshold=0.8; repeatable."),
    ] = None,
    drill: Annotated[
        str,
        typer.Option(help="Make it misbehave on purpose, e.g. fail_ratio=1,after=200; needs PALATE_DRILLS=1 in `up`."),
    ] = "",
    canary: Annotated[bool, typer.Option("--canary", help="Set the alias `canary` on it: its rollout starts.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a release with the components of another one and some settings changed."""
    environment = {**os.environ, "PALATE_HOME": str(home_of(home).root)}
    store = MlflowStore(RegistryConfig.from_env(environment).mlflow_uri)
    origin = store.get(app, version_or_alias(base))
    spec = changed_spec(origin.release.spec, _settings(changes or []))
    if drill:
        spec = with_drill(spec, _numbers(drill))
    published = store.publish(derive(origin, checked(spec)), {})
    if canary:
        store.set_alias(app, "canary", published.version)
    if as_json:
        typer.echo(json.dumps({"app": app, "version": published.version, "from": origin.version}))
        return
    console.print(f"[bold]{app}[/] version {published.version}, from version {origin.version}", highlight=False)
    if not canary:
        console.print(f"Try it: set the alias `canary` on version {published.version} in the MLflow UI")


def checked(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with every default written out. Raises BadRequest that names the key."""
    return parse_app_spec(spec).model_dump(mode="json")


def with_drill(spec: dict[str, Any], options: dict[str, float]) -> dict[str, Any]:
    """The spec with a source that misbehaves, asked before all others."""
    from serving.retrieve.drill import read_drill  # with it comes numpy: every `palate` command loads this file

    read_drill(options)
    source = {"engine": DRILL, "weight": 0, "options": options}
    changes: dict[str, Any] = {f"retrieve.sources.{DRILL}": source}
    fusion = spec["retrieve"]["fusion"]
    if fusion["method"] == "cascade":
        changes["retrieve.fusion.order"] = [DRILL, *(name for name in fusion["order"] if name != DRILL)]
    return changed_spec(spec, changes)


def _settings(changes: list[str]) -> dict[str, Any]:
    settings = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise BadRequest(f"--set wants KEY=VALUE, not {change!r}", field="set")
        settings[key] = yaml.safe_load(value)
    return settings


def _numbers(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise BadRequest(f"--drill wants NAME=NUMBER,…, not {text!r}", field="drill") from None
