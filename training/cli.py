"""palate index, palate evaluate: build a release, and measure one; and the commands of `training.commands`.

What is heavy (MLflow, Chroma, torch) is imported by the command that needs it: every `palate` command loads this file.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from registry.errors import ReleaseNotFound
from registry.schema import version_or_alias
from serving.errors import BadRequest
from serving.schema import find_app, load_app_spec
from training.commands import (
    HomeOption,
    JsonOption,
    batch,
    console,
    data,
    learner,
    models,
    notes,
    one_line_errors,
    open_migrated,
    open_releases,
    train,
)
from training.config import TrainingConfig
from training.progress import Progress

if TYPE_CHECKING:
    from registry.ports import ReleaseStore
    from registry.schema import ReleaseVersion
    from serving.schema import AppSpec
    from training.evaluate import Report

STABLE = "stable"
SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter lock. The words of an index are read in Python while vectors, digests and
the graph are made in C: at the default of 5 ms each of their many returns to Python waits that long."""

commands = typer.Typer()
for module in (batch, data, learner, models, train):
    commands.add_typer(module.commands)


@commands.command()
@one_line_errors()
def index(
    app: Annotated[str, typer.Argument(help="An app's folder, or an example's name.")],
    promote: Annotated[bool, typer.Option("--promote", help="Serve it at once: move `stable` to it.")] = False,
    skip_evaluation: Annotated[bool, typer.Option("--skip-evaluation", help="Do not measure it.")] = False,
    from_base: Annotated[
        bool, typer.Option("--from-base", help="Drop what was trained: go back to the models that app.yaml names.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a release of an app's catalogue and publish it; the first one becomes `stable`.

    What `palate train` made of the stable release is kept, and its indexes are rebuilt with it.
    """
    from serving.store import SqlItemStore
    from serving.store.seed import seed_items
    from training.evaluate import metrics_of
    from training.index import Inputs, ReleaseBuilder, work_folder
    from training.interactions import of_home
    from training.measure import measure
    from training.vectors import drop_unused_vectors

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    folder = find_app(app)
    spec = load_app_spec(folder)
    config = TrainingConfig.from_env(home)
    store, database = open_releases(config), open_migrated(config)
    items = SqlItemStore(database)
    seed_items(spec, folder, items, lambda text: notes.print(f"  {text}", highlight=False, markup=False))
    progress = Progress(spec.name, notes)
    with work_folder(config, spec.name) as work:
        builder = ReleaseBuilder(spec, folder, work, config, store, progress)
        done = partial(of_home, spec, folder, database, config.serving)
        built = builder.build(items, Inputs(from_base=from_base, interactions=done))
        metrics = dict(built.release.metrics) | {f"seconds_{step}": s for step, s in built.seconds.items()}
        if not skip_evaluation:
            for name, report in measure(spec, folder, built.named, config, spec.evaluation, progress).items():
                metrics |= metrics_of(name, report)
        release = replace(built.release, metrics=metrics)
        version = store.publish(release, built.folders)
    first = not _has_stable(store, spec.name)
    if promote or first:
        store.set_alias(spec.name, STABLE, version.version)
    drop_unused_vectors(spec.name, store, config)
    state = "stable" if promote or first else f"registered; serve it with: palate index {app} --promote"
    if as_json:
        console.print_json(data={"app": spec.name, "release": version.version, "digest": release.digest,
                                 "stable": promote or first, "metrics": metrics})  # fmt: skip
    else:
        console.print(f"  {spec.name}: release {version.version} ({release.digest[:12]}), {state}", highlight=False)


@commands.command()
@one_line_errors()
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
    against: Annotated[
        str | None, typer.Option(help="Show the difference to this release, with intervals: a version or an alias.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a release on its frozen sets, with the pipeline that serves it, without HTTP."""
    from serving.build import fetch_components
    from serving.schema import AppSpec
    from training.evaluate import render
    from training.evidence import compare
    from training.gates import contrast, render_rows
    from training.measure import measure, variant

    folder = find_app(app)
    config = TrainingConfig.from_env(home)
    store = open_releases(config)
    app_spec = load_app_spec(folder)
    name, there = app_spec.name, app_spec.evaluation
    if unknown := sorted(set(sets or ()) - set(there)):
        raise BadRequest(f"{name} has no evaluation set {unknown[0]!r}; it has {sorted(there)}", field="set")
    wanted = {n: e for n, e in there.items() if sets is None or n in sets}

    def measured(version: ReleaseVersion, spec: AppSpec) -> dict[str, Report]:
        folders = fetch_components(version, store, config.serving.component_cache)
        return measure(spec, folder, folders, config, wanted, Progress(name, notes))

    version = store.get(name, version_or_alias(release))
    spec = variant(AppSpec.model_validate(version.release.spec), only or (), option or (), abstain_below)
    reports = measured(version, spec)
    shown = {"app": name, "release": version.version, "sets": {n: r.to_json() for n, r in reports.items()}}
    tables = {n: [render(r, f"{name} release {version.version}, {n}")] for n, r in reports.items()}
    if against is not None:
        other = store.get(name, version_or_alias(against))
        compared = compare(reports, measured(other, AppSpec.model_validate(other.release.spec)))
        rows = {n: contrast(n, compared[n], e.metric) for n, e in wanted.items()}
        shown |= {"against": other.version, "differences": {n: [asdict(r) for r in rows[n]] for n in rows}}
        for n, e in wanted.items():
            tables[n].append(render_rows(rows[n], e.metric, n, (f"release {other.version}", "this one")))
    if as_json:
        console.print_json(data=shown)
        return
    for n, report in reports.items():
        wrong = [f"  {failure}" for failure in report.failures[:failures]]
        console.print("\n".join([*tables[n], *wrong]), highlight=False, markup=False)


def _has_stable(store: ReleaseStore, app: str) -> bool:
    try:
        store.get(app, STABLE)
    except ReleaseNotFound:
        return False
    return True
