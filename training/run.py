"""One training run of an app: data sets, training, a release, its evaluation, its gates, and what it earned.

`palate train` calls `train`. Each step is done once and recorded in the run's folder, so a run that was killed goes on
with the same data where it stopped. Calls `training.dataset`, the trainers through `training.job`, `training.index`,
the gates and `training.publish`, all of them by way of `Means`, so that tests can bring a trainer of their own.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from registry.content import digest_folder, digest_json
from registry.errors import RegistryUnavailable, ReleaseNotFound
from registry.manifest import from_json, to_json
from registry.schema import ReleaseVersion
from training import lineage
from training.dataset.example import DatasetInfo, people_in
from training.errors import RunFenced, TrainingRefused
from training.index import BuiltRelease, Inputs, ReleaseBuilder
from training.order import Comparison, DatasetOrder, Means, Order, Result, SnapshotItems, write_items
from training.ports import NewComponent, StopTraining, Task, Trainer
from training.publish import TAG_CANARY, Candidate, Judged, lineage_of_components, publish
from training.run_folder import MLFLOW_FILE, RunFolder, clean_up
from training.runs import Ask, Run, Runs
from training.tracking import Tracking
from training.trainers import checked_options, component_of
from training.vectors import drop_unused_vectors


class Heartbeat:
    """Renews the run's lease while the block runs. `lost`: another process has the run now."""

    def __init__(self, runs: Runs, run: Run) -> None:
        self._runs = runs
        self._run = run
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self.lost = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def check(self) -> None:
        if self.lost:
            raise RunFenced(f"another process took over from run {self._run.id}: nothing was published")

    def _beat(self) -> None:
        while not self._end.wait(self._runs.lease_s / 4):
            try:
                self._runs.renew(self._run)
            except RegistryUnavailable:
                continue  # the lease may outlast it; if not, the next step says so
            except RunFenced:
                self.lost = True
                return


def train(order: Order, means: Means) -> Result:
    """Raises RunBusy, RunFenced, and what a person or the platform can mend: the run is then `failed`, and the same
    order goes on with it."""
    run = means.runs.begin(Ask(order.spec.name, order.request, order.why, order.who, order.fresh))
    clean_up(means.config.home, run.app, {run.id})
    folder = RunFolder(means.config.home, run.app, run.id)
    try:
        with folder.locked(), Heartbeat(means.runs, run) as heartbeat:
            result = _Steps(order, means, run, folder, heartbeat).go()
    except RunFenced:
        raise
    except StopTraining as error:  # the heartbeat stopped the loop
        raise RunFenced(f"another process took over from run {run.id}: nothing was published") from error
    except BaseException as error:
        _note_failure(means.runs, run, error)
        raise
    if result.status != "finished":
        shutil.rmtree(folder.path, ignore_errors=True)
        return replace(result, folder=None)
    return result


def _note_failure(runs: Runs, run: Run, error: BaseException) -> None:
    said = "stopped by a signal" if isinstance(error, KeyboardInterrupt) else str(error) or repr(error)
    try:
        runs.finish(run, "failed", error=said)
    except (RunFenced, RegistryUnavailable):
        return  # its lease will run out


def only_datasets(order: Order, means: Means, folder: Path) -> dict[str, DatasetInfo]:
    """Build the data sets in the empty `folder` and nothing else. No lease: it changes nothing."""
    stable = _stable(means, order.spec.name)
    write_items(folder / "items.jsonl", means.items, order.spec.name)
    found = {}
    for name in order.names:
        at = folder / name
        at.mkdir()
        found[name] = means.dataset(_data(order, name, at, folder / "items.jsonl", stable, time.time()), means.progress)
    return found


def _stable(means: Means, app: str) -> ReleaseVersion:
    try:
        return means.releases.get(app, "stable")
    except ReleaseNotFound:
        raise TrainingRefused(
            f"{app} has no stable release to be better than: build one first with `palate index {app} --promote`"
        ) from None


class _Steps:
    """The steps of one run, in order."""

    def __init__(self, order: Order, means: Means, run: Run, folder: RunFolder, heartbeat: Heartbeat) -> None:
        self._order = order
        self._means = means
        self._run = run
        self._folder = folder
        self._heartbeat = heartbeat
        self._tracking = means.track(run, folder.path / MLFLOW_FILE)
        self._datasets: dict[str, DatasetInfo] = {}

    def go(self) -> Result:
        try:
            result = self._go()
        except BaseException as error:
            self._tracking.fail(str(error) or repr(error))
            raise
        self._tracking.status(f"{result.status}: {result.why}")
        self._tracking.finish()
        values: dict[str, Any] = {"mlflow_run": self._tracking.run_id, "outcome": _outcome(result)}
        if result.published is not None:
            values["version"] = result.published.version
        self._means.runs.finish(self._run, result.status, **values)
        self._supersede(result)
        return result

    def _go(self) -> Result:
        self._tracking.params({**self._order.request, "why": self._run.why, "who": self._run.who})
        data = [f"dataset.{name}" for name in self._order.names]
        if self._holds_forgotten():  # it was interrupted, and `palate forget` came before it goes on
            self._folder.clear()
        if self._folder.done(data[-1]) is None:  # its data was never whole: begin with what there is now
            self._folder.forget("items", "stable", *data)
        self._step("items")
        snapshot = self._folder.once(
            "items", lambda at: write_items(at / "items.jsonl", self._means.items, self._run.app)
        )
        began_with = self._began_with()
        for name in self._order.names:
            self._dataset(name, began_with)
        self._note_data()
        trained = {name: self._train(name, began_with) for name in self._order.names}
        built = self._build(snapshot, trained)
        stable = _stable(self._means, self._run.app)
        if built.release.digest == stable.release.digest:
            why = f"the candidate is version {stable.version}, which is stable: there is nothing to publish"
            return Result(self._run, "unchanged", why, self._datasets)
        judged = self._judge(built, stable, {name: self._task(name, began_with) for name in self._order.names})
        if not self._order.publish:
            why = f"not published; gates: {judged.why}"
            return Result(self._run, "finished", why, self._datasets, judged, folder=self._folder.path)
        self._step("publish")
        if self._holds_forgotten():
            self._folder.clear()
            raise TrainingRefused(
                "somebody whose data this run learnt from was forgotten meanwhile, so nothing was published: the same "
                "command begins again without them"
            )
        candidate = self._candidate(built, judged, trained, stable)
        published = publish(candidate, self._run, self._means.runs, self._means.releases, self._means.journal)
        self._tracking.tags({"palate.version": str(published.version)})
        drop_unused_vectors(self._run.app, self._means.releases, self._means.config)
        return Result(self._run, published.status, published.why, self._datasets, judged, published)

    # --- steps

    def _step(self, name: str) -> None:
        self._heartbeat.check()
        self._tracking.status(name)

    def _holds_forgotten(self) -> bool:
        gone = frozenset(self._means.forgotten(self._run.app))
        data = [f"dataset.{name}" for name in self._order.names]
        made = [self._folder.at(step) for step in data if self._folder.done(step) is not None]
        return any(not gone.isdisjoint(people_in(folder)) for folder in made)

    def _began_with(self) -> ReleaseVersion:
        """The release that was stable when the run began: its models are started from, its index mines negatives."""
        told = self._folder.once("stable", lambda _: {"version": _stable(self._means, self._run.app).version})
        return self._means.releases.get(self._run.app, int(told["version"]))

    def _dataset(self, name: str, stable: ReleaseVersion) -> None:
        self._step(f"{name}: data set")

        def make(at: Path) -> dict[str, Any]:
            request = _data(self._order, name, at, self._items, stable, self._run.started_s)
            info = self._means.dataset(request, self._means.progress)
            return {**asdict(info), "counts": dict(info.counts)}

        told = self._folder.once(f"dataset.{name}", make)
        self._datasets[name] = DatasetInfo(**{**told, "unseen_items": tuple(told["unseen_items"])})
        self._tracking.params({f"{name}.dataset": self._datasets[name].fingerprint})
        self._tracking.metrics({f"{name}.examples.{k}": float(v) for k, v in self._datasets[name].counts.items()})

    def _note_data(self) -> None:
        seq = max(info.feedback_seq for info in self._datasets.values())
        one = digest_json({name: info.fingerprint for name, info in self._datasets.items()})
        self._means.runs.note(self._run, fingerprint=one, feedback_seq=seq, mlflow_run=self._tracking.run_id)

    def _train(self, name: str, stable: ReleaseVersion) -> dict[str, Any]:
        """What the training made, as JSON: models and components by path, metrics, and where it began."""
        self._step(f"{name}: training")
        return dict(self._folder.once(f"trained.{name}", lambda _: self._fit(name, stable)))

    def _task(self, name: str, stable: ReleaseVersion) -> tuple[Task, str]:
        """What trainer and gates are given, and the name of the component that is replaced."""
        spec = self._order.job_spec()
        trainer = self._means.find_trainer(spec.train[name].trainer)
        component = component_of(name, spec, trainer)
        work = self._folder.at(f"work.{name}")
        work.mkdir(exist_ok=True)
        task = Task(
            spec, name, self._order.app_folder, self._folder.at(f"dataset.{name}"), self._items,
            self._start(name, component, stable), work, checked_options(name, spec.train[name], trainer),
            spec.train[name].seed, self._means.config.home,
        )  # fmt: skip
        tuned = self._folder.done(f"tuned.{name}")
        return (task if tuned is None else replace(task, options=trainer.options.model_validate(tuned))), component

    def _fit(self, name: str, stable: ReleaseVersion) -> dict[str, Any]:
        task, _ = self._task(name, stable)
        trainer = self._means.find_trainer(task.train.trainer)
        tracking = self._tracking.child(name)
        if self._order.tune:
            task = self._tune(name, trainer, task, tracking)
        trained = self._means.fit(trainer, task, self._means.progress, tracking, lambda: self._heartbeat.lost)
        tracking.finish()
        return {
            "models": {embedder: str(path) for embedder, path in trained.models.items()},
            "components": [{**asdict(c), "folder": str(c.folder), "needs": list(c.needs)} for c in trained.components],
            "metrics": dict(trained.metrics),
            "options": task.options.model_dump(mode="json"),
            "started_from": "" if task.start is None else digest_folder(task.start)[0],
        }

    def _tune(self, name: str, trainer: Trainer, task: Task, tracking: Tracking) -> Task:
        """The task with the options that won; found once, also when the training after it is killed."""

        def search(_: Path) -> dict[str, Any]:
            means, trials = self._means, self._order.tune
            won = means.tune(trainer, task, trials, means.progress, tracking, lambda: self._heartbeat.lost)
            return dict(won.options.model_dump(mode="json"))

        won = self._folder.once(f"tuned.{name}", search)
        return replace(task, options=trainer.options.model_validate(won))

    def _start(self, name: str, component: str, stable: ReleaseVersion) -> Path | None:
        if self._order.spec.train[name].start != "stable":
            return None
        try:
            found = stable.release.component(component)
        except KeyError:
            return None
        # What was never trained lies there without weights to go on from, and is the named model anyway
        if lineage.trained_key(component) not in stable.release.lineage:
            return None
        return self._means.releases.fetch(found, self._means.config.serving.component_cache)

    def _build(self, snapshot: Mapping[str, int], trained: Mapping[str, Mapping[str, Any]]) -> BuiltRelease:
        self._step("building the release")

        def make(at: Path) -> dict[str, Any]:
            models = {embedder: Path(path) for one in trained.values() for embedder, path in one["models"].items()}
            items = SnapshotItems(self._items, snapshot["count"], snapshot["sequence"])
            means = self._means
            builder = ReleaseBuilder(
                self._order.spec, self._order.app_folder, at, means.config, means.releases, means.progress
            )
            done = partial(means.interactions, self._order.spec, self._order.app_folder)
            built = builder.build(items, Inputs(models, _components(trained), interactions=done))
            named = {name: str(folder) for name, folder in built.named.items()}
            return {"release": to_json(built.release), "named": named, "seconds": built.seconds}

        told = self._folder.once("release", make)
        release = from_json(told["release"])
        named = {name: Path(folder) for name, folder in told["named"].items()}
        folders = {component.digest: named[component.name] for component in release.components}
        return BuiltRelease(release, folders, named, told["seconds"], {})

    def _judge(self, built: BuiltRelease, stable: ReleaseVersion, tasks: Mapping[str, tuple[Task, str]]) -> Judged:
        self._step("evaluation")
        comparison = Comparison(self._order.spec, self._order.app_folder, built, stable, tasks)

        def make(at: Path) -> dict[str, Any]:
            judged = asdict(self._means.judge(comparison, self._means.progress))
            (at / "gates.json").write_text(json.dumps(judged, ensure_ascii=False, indent=1), encoding="utf-8")
            return judged

        step = f"gates.{stable.version}"  # stable may have moved before the run was resumed
        judged = Judged(**self._folder.once(step, make))
        self._tracking.artifact(self._folder.at(step))
        self._tracking.metrics(judged.metrics)
        self._tracking.tags({"palate.gates": "passed" if judged.passed else "failed", "palate.gates_why": judged.why})
        return judged

    def _candidate(
        self, built: BuiltRelease, judged: Judged, trained: Mapping[str, Mapping[str, Any]], stable: ReleaseVersion
    ) -> Candidate:
        spec = self._order.job_spec()
        told: dict[str, str] = {lineage.PARENT: str(stable.version), "train.run": str(self._run.id)}
        made: dict[str, str] = {}
        metrics: dict[str, float] = {}
        for name, one in trained.items():
            train = spec.train[name]
            told |= lineage.of_training(
                name, train, one["options"], self._datasets[name].fingerprint, one["started_from"]
            )
            made |= {f"embedder.{embedder}": name for embedder in one["models"]}
            made |= {component["name"]: name for component in one["components"]}
            metrics |= {f"train.{name}.{key}": value for key, value in one["metrics"].items()}
        told |= lineage_of_components(made)
        canary = all(spec.train[name].canary for name in trained)
        return Candidate(built, judged, told, metrics, canary)

    def _supersede(self, result: Result) -> None:
        """A newer candidate that passed takes the place of those that wait."""
        if result.published is None or result.published.give == "none" or result.status not in ("published", "waiting"):
            return
        for old in self._means.runs.waiting(self._run.app):
            if old.id < self._run.id and old.version is not None:
                why = f"superseded: version {result.published.version} passed its gates since"
                self._means.runs.settle(old, "superseded")
                self._means.releases.set_tags(self._run.app, old.version, {TAG_CANARY: why})

    @property
    def _items(self) -> Path:
        return self._folder.at("items") / "items.jsonl"


def _data(order: Order, name: str, at: Path, items: Path, stable: ReleaseVersion, now_s: float) -> DatasetOrder:
    seed = order.job_spec().train[name].seed
    return DatasetOrder(order.spec, name, order.app_folder, at, items, stable, now_s, seed)


def _components(trained: Mapping[str, Mapping[str, Any]]) -> Sequence[NewComponent]:
    return [
        NewComponent(**{**component, "folder": Path(component["folder"]), "needs": tuple(component["needs"])})
        for one in trained.values()
        for component in one["components"]
    ]


def _outcome(result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {"why": result.why, "datasets": {n: dict(i.counts) for n, i in result.datasets.items()}}
    if result.judged is not None:
        told["gates"] = asdict(result.judged)
    if result.published is not None:
        told["alias"] = {"give": result.published.give, "why": result.published.why}
    return told
