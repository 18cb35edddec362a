"""palate index, palate evaluate: build a release, and measure one.

What is heavy (MLflow, Chroma, torch) is imported by the command that needs it: every `palate` command loads this file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from registry.errors import ReleaseNotFound
from serving.errors import BadRequest
from serving.schema import find_app, load_app_spec
from training.config import TrainingConfig
from training.errors import TrainingError
from training.progress import Progress

if TYPE_CHECKING:
    from registry.ports import ReleaseStore
    from training.evaluate import Report

STABLE = "stable"
SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter lock. The words of an index are read in Python while vectors, digests and
the graph are made in C: at the default of 5 ms each of their many returns to Python waits that long."""
HomeOption = Annotated[Path | None, typer.Option("--home", envvar="PALATE_HOME", help="Folder of all local state.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

commands = typer.Typer()
console = Console(soft_wrap=True)
notes = Console(soft_wrap=True, stderr=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a person can correct is one line and status 1. The root command does so for the errors of serving."""
    try:
        yield
    except TrainingError as error:
        typer.echo(f"palate: {error}", err=True)
        raise typer.Exit(1) from None


@commands.command()
@_one_line_errors()
def index(
    app: Annotated[str, typer.Argument(help="An app's folder, or an example's name.")],
    promote: Annotated[bool, typer.Option("--promote", help="Serve it at once: move `stable` to it.")] = False,
    skip_evaluation: Annotated[bool, typer.Option("--skip-evaluation", help="Do not measure it.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a release of an app's catalogue and publish it; the first one becomes `stable`."""
    from registry.database import migrate, open_database
    from registry.schema import Release
    from serving.store import SqlItemStore
    from training.index import ReleaseBuilder, work_folder
    from training.measure import measure

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    folder = find_app(app)
    spec = load_app_spec(folder)
    config = TrainingConfig.from_env(home)
    store = _store(config)
    migrate(config.serving.database)
    items = SqlItemStore(open_database(config.serving.database))
    progress = Progress(spec.name, notes)
    with work_folder(config, spec.name) as work:
        built = ReleaseBuilder(spec, folder, work, config, store, progress).build(items)
        metrics = dict(built.release.metrics) | {f"seconds_{step}": s for step, s in built.seconds.items()}
        if not skip_evaluation:
            for name, report in measure(spec, folder, built.named, config, spec.evaluation, progress).items():
                metrics |= _metrics_of(name, report)
        release = Release(
            spec.name, built.release.spec, built.release.components, built.release.items_seq, built.release.digest,
            metrics, built.release.lineage,
        )  # fmt: skip
        version = store.publish(release, built.folders)
    first = not _has_stable(store, spec.name)
    if promote or first:
        store.set_alias(spec.name, STABLE, version.version)
    state = "stable" if promote or first else f"registered; serve it with: palate index {app} --promote"
    if as_json:
        console.print_json(data={"app": spec.name, "release": version.version, "digest": release.digest,
                                 "stable": promote or first, "metrics": metrics})  # fmt: skip
    else:
        console.print(f"  {spec.name}: release {version.version} ({release.digest[:12]}), {state}", highlight=False)


@commands.command()
@_one_line_errors()
def evaluate(
    app: Annotated[str, typer.Argument(help="An app's folder, or an example's name.")],
    release: Annotated[str, typer.Option(help="Version number or alias.")] = STABLE,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Evaluation sets of app.yaml; default: all.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Ask only these sources; repeatable.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Change an engine constant: SOURCE.NAME=NUMBER; repeatable.")
    ] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Another threshold of abstention; 0: never abstain.", min=0, max=1)
    ] = None,
    failures: Annotated[int, typer.Option(help="Show this many queries that went wrong, per set.", min=0)] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a release on its frozen sets, with the pipeline that serves it, without HTTP."""
    from serving.schema import AppSpec
    from training.evaluate import render
    from training.measure import measure, variant

    folder = find_app(app)
    config = TrainingConfig.from_env(home)
    store = _store(config)
    name = load_app_spec(folder).name
    version = store.get(name, int(release) if release.isdigit() else release)
    folders = {c.name: store.fetch(c, config.serving.component_cache) for c in version.release.components}
    spec = variant(AppSpec.model_validate(version.release.spec), only or (), option or (), abstain_below)
    there = load_app_spec(folder).evaluation
    if unknown := sorted(set(sets or ()) - set(there)):
        raise BadRequest(f"{name} has no evaluation set {unknown[0]!r}; it has {sorted(there)}", field="set")
    wanted = {n: e for n, e in there.items() if sets is None or n in sets}
    reports = measure(spec, folder, folders, config, wanted, Progress(name, notes))
    if as_json:
        console.print_json(data={"app": name, "release": version.version,
                                 "sets": {n: r.to_json() for n, r in reports.items()}})  # fmt: skip
        return
    for set_name, report in reports.items():
        console.print(render(report, f"{name} release {version.version}, {set_name}"), highlight=False, markup=False)
        for failure in report.failures[:failures]:
            console.print(f"  {failure}", highlight=False, markup=False)


def _store(config: TrainingConfig) -> ReleaseStore:
    from registry.config import RegistryConfig
    from registry.mlflow_store import MlflowStore

    uri = config.serving.mlflow_uri or RegistryConfig.from_env({"PALATE_HOME": str(config.home)}).mlflow_uri
    return MlflowStore(uri)


def _has_stable(store: ReleaseStore, app: str) -> bool:
    try:
        store.get(app, STABLE)
    except ReleaseNotFound:
        return False
    return True


def _metrics_of(name: str, report: Report) -> dict[str, float]:
    overall = report.overall
    return {
        f"{name}_accuracy": overall.accuracy,
        f"{name}_success_at_{report.k}": overall.success_at_k,
        f"{name}_mrr_at_{report.k}": overall.mrr_at_k,
    }
