"""palate train, palate runs: make an app's models better from its feedback, and look at what came of it.

Exit status of `palate train`: 0 the candidate passed its gates (or there was nothing to publish), 3 it did not, 1 it
came to no candidate; the message says why.
"""

from __future__ import annotations

import getpass
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from serving.schema import AppSpec, find_app, load_app_spec
from training.commands import (
    HomeOption,
    JsonOption,
    console,
    mlflow_uri,
    notes,
    one_line_errors,
    open_migrated,
    open_releases,
    print_json,
)
from training.config import TrainingConfig
from training.errors import TrainingRefused
from training.progress import Progress

if TYPE_CHECKING:
    from training.dataset import DatasetInfo
    from training.order import Means, Order, Result
    from training.runs import Run

GATES_FAILED = 3
ASK_AGAIN_S = 2.0

commands = typer.Typer()

AppArgument = Annotated[str, typer.Argument(help="An app's folder, or an example's name.")]


@commands.command()
@one_line_errors()
def train(
    app: AppArgument,
    only: Annotated[list[str] | None, typer.Option("--only", help="Train this entry of `train:`; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the seed in app.yaml.", min=0)] = None,
    workers: Annotated[int | None, typer.Option(help="Instead of `scaling.workers`.", min=1)] = None,
    tune: Annotated[int, typer.Option(help="First try so many sets of options, and keep the best.", min=0)] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, even where a killed run could go on.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run of this app that is on its way.")] = False,
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Stop after the gates: register nothing, keep what was made.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build the data sets, show their counts, stop.")] = False,
    as_stable: Annotated[
        bool, typer.Option("--as-stable", help="Use the app spec of the stable release instead of app.yaml.")
    ] = False,
    why: Annotated[str, typer.Option(help="Kept with the run.")] = "by hand",
    who: Annotated[str, typer.Option(help="Kept with the run; default: you.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an app's models on its feedback and publish a candidate release, if it passes its gates.

    Data set, training, release, evaluation against stable, gates, registration: each step is done once. A run that was
    killed, or that failed, goes on where it stopped when the same command is given again, with the same data.

    A candidate that passes gets the alias `canary` where `train.NAME.canary` says so and no other canary is on trial.
    One that fails is registered too, with the reason in its tag `palate.gates_why`.

    Exit status: 0 passed, or nothing new to publish; 3 the gates said no; 1 anything else.
    """
    from training.order import Order
    from training.run import train as run_train
    from training.runs import RunBusy

    folder = find_app(app)
    config = TrainingConfig.from_env(home)
    spec = load_app_spec(folder)
    if as_stable:
        spec = AppSpec.model_validate(open_releases(config).get(spec.name, "stable").release.spec)
    order = Order(folder, spec, tuple(only or ()), seed, workers, tune, not no_publish, fresh, why, who or _user())
    order.names  # noqa: B018 - refuses what is not there before anything is opened
    means = _means(config, spec.name)
    signal.signal(signal.SIGTERM, _as_interrupt)
    if dry_run:
        _show_datasets(order, means, as_json)
        return
    while True:
        try:
            result = run_train(order, means)
            break
        except RunBusy as error:
            if not wait:
                raise
            notes.print(f"  {spec.name}: waiting: {error}", highlight=False, markup=False)
            time.sleep(ASK_AGAIN_S)
    _show(result, as_json)
    if result.judged is not None and not result.judged.passed:
        raise typer.Exit(GATES_FAILED)


@commands.command()
@one_line_errors()
def runs(
    app: AppArgument,
    run: Annotated[int | None, typer.Argument(help="Show all of this run.")] = None,
    limit: Annotated[int, typer.Option(help="Show the newest so many.", min=1)] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """The training runs of an app: what started them, how far they came, and what the gates said."""
    from training.runs import Runs

    name = load_app_spec(find_app(app)).name
    kept = Runs(open_migrated(TrainingConfig.from_env(home)))
    if run is None:
        found = kept.of(name, limit)
        if as_json:
            print_json({"app": name, "runs": [_run_json(one) for one in found]})
        else:
            console.print(_table(found) if found else f"{name} has no training runs yet: palate train {app}")
        return
    one = kept.get(run)
    if one is None or one.app != name:
        raise TrainingRefused(f"{name} has no run {run}; `palate runs {app}` lists those there are")
    if as_json:
        print_json(_run_json(one))
    else:
        _show_run(one)


def _means(config: TrainingConfig, app: str) -> Means:
    from training.job.cluster import Where
    from training.wiring import Wiring

    wiring = Wiring(config, open_migrated(config), open_releases(config), mlflow_uri(config), Where.from_env())
    return wiring.means(app, Progress(app, notes))


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return ""


# --- what is shown


def _show_datasets(order: Order, means: Means, as_json: bool) -> None:
    from training.index import work_folder
    from training.run import only_datasets

    with work_folder(means.config, order.spec.name) as folder:
        found = only_datasets(order, means, folder)
    if as_json:
        print_json({"app": order.spec.name, "datasets": {name: _data_json(info) for name, info in found.items()}})
        return
    for name, info in found.items():
        console.print(f"{name}: data set {info.fingerprint[:12]}", highlight=False)
        for key, count in info.counts.items():
            console.print(f"  {key:32} {count:>12,}", highlight=False, markup=False)


def _show(result: Result, as_json: bool) -> None:
    published = result.published
    version = None if published is None else published.version
    if as_json:
        judged = result.judged
        print_json(
            {
                "app": result.run.app,
                "run": result.run.id,
                "status": result.status,
                "why": result.why,
                "release": version,
                "gates": None if judged is None else {"passed": judged.passed, "why": judged.why},
                "datasets": {name: _data_json(info) for name, info in result.datasets.items()},
                "folder": None if result.folder is None else str(result.folder),
            }
        )
        return
    said = f"  {result.run.app}: run {result.run.id} {result.status}"
    console.print(f"{said}, release {version}" if version else said, highlight=False)
    if result.judged is not None:
        console.print(f"  gates: {result.judged.why}", highlight=False, markup=False)
    console.print(f"  {result.why}", highlight=False, markup=False)
    if result.folder is not None:
        console.print(f"  what was made lies in {result.folder} until the next run", highlight=False, markup=False)


def _data_json(info: DatasetInfo) -> dict[str, Any]:
    return {"fingerprint": info.fingerprint, "counts": dict(info.counts), "feedback_seq": info.feedback_seq}


def _table(found: list[Run]) -> Table:
    table = Table("run", "status", "started", "took", "why", "release", "what came of it", box=None)
    for run in found:
        ended_s = run.ended_s or (run.now_s if run.live else run.heartbeat_s)
        table.add_row(
            str(run.id), run.shown_status, _time(run.started_s), f"{ended_s - run.started_s:.0f} s", run.why,
            str(run.version or "-"), run.error or str(run.outcome.get("why", "")),
        )  # fmt: skip
    return table


def _show_run(run: Run) -> None:
    shown = {
        "run": f"{run.id} of {run.app}, {run.shown_status}",
        "started": f"{_time(run.started_s)} by {run.who or 'somebody'}: {run.why}",
        "attempts": run.attempts if run.attempts > 1 else None,
        "asked": ", ".join(f"{k} {v}" for k, v in run.request.items() if k != "spec" and v not in (None, 0)),
        "data set": f"{run.fingerprint[:12]}, feedback to event {run.feedback_seq}" if run.fingerprint else None,
        "release": run.version,
        "gates": run.outcome.get("gates", {}).get("why"),
        "alias": run.outcome.get("alias", {}).get("why"),
        "MLflow run": run.mlflow_run,
        "error": run.error,
    }
    for name, value in shown.items():
        if value:
            console.print(f"{name:10} {value}", highlight=False, markup=False)
    for name, counts in _mappings(run.outcome.get("datasets", {})):
        console.print(f"{name}: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()), highlight=False, markup=False)


def _mappings(value: Mapping[str, Any]) -> list[tuple[str, Mapping[str, int]]]:
    return [(name, counts) for name, counts in value.items() if isinstance(counts, Mapping)]


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "run": run.id, "status": run.shown_status, "why": run.why, "who": run.who, "attempts": run.attempts,
        "started_s": run.started_s, "ended_s": run.ended_s, "request": dict(run.request), "dataset": run.fingerprint,
        "feedback_seq": run.feedback_seq, "release": run.version, "outcome": dict(run.outcome), "error": run.error,
        "mlflow_run": run.mlflow_run, "process": run.holder,
    }  # fmt: skip


def _time(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
