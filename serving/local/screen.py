"""What `palate up` ends with: addresses, one curl line per app that works when pasted, and how to stop."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from serving.local.home import Home, Running
from serving.schema import AppSpec


def curl_line(home: Home, running: Running, spec: AppSpec) -> str:
    """A shell line that asks the app its example query."""
    body = json.dumps({"query": spec.example_query or spec.name, "top_k": 3}, ensure_ascii=False)
    key = f'"Authorization: Bearer $(cat {shlex.quote(str(home.api_key_file))})"'
    return f"curl -s {running.url}/v1/apps/{spec.name}/query -H {key} -d {shlex.quote(body)}"


def show(home: Home, running: Running, specs: Sequence[AppSpec], console: Console) -> None:
    console.print("\n[bold green]Palate is ready.[/]")
    console.print(f"  endpoint   {running.url}", highlight=False)
    console.print(f"  MLflow UI  {running.mlflow_url}", highlight=False)
    console.print(f"  API key    {home.api_key_file}", highlight=False)
    if running.new_key:
        console.print(f"             {home.api_key_file.read_text().strip()}  (shown this once)", highlight=False)
    for spec in specs:
        console.print(f"\n  {spec.name}: {spec.description}", highlight=False)
        console.print(f"  {curl_line(home, running, spec)}", highlight=False, markup=False)
    default = home.root == Path.home() / ".palate"
    console.print(
        f"\n  stop       palate down{'' if default else f' --home {home.root}'}   (or Ctrl-C here)\n", highlight=False
    )


def show_status(body: Mapping[str, Any], console: Console) -> None:
    if not body["running"]:
        console.print(f"Nothing runs in {body['home']}.")
        return
    console.print(
        f"{'ready' if body['ready'] else 'not ready'}: {body['url']} (MLflow {body['mlflow']}, pid {body['pid']})"
    )
    for app, problem in body["problems"].items():
        console.print(f"  {app}: {problem}")
    for name, deployments in body.get("deployments", {}).items():
        replicas = ", ".join(f"{unit} {sum(states.values())}" for unit, states in deployments.items())
        console.print(f"  Serve application {name}: replicas {replicas}", highlight=False)
    for app, says in body.get("learner", {}).items():
        console.print(f"  learner, {app}: {says}", highlight=False, markup=False)
    for resource, (used, total) in body.get("resources_used", {}).items():
        console.print(f"  Ray {resource}: {used:g} of {total:g} in use", highlight=False)
