"""The real means of a training run: stores, data sets, Ray Train, MLflow and the gates.

`training.commands` calls `open_means`; tests do with a trainer of their own and without Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from registry.database import Database
from registry.journal import SqlJournal
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion
from serving import build
from serving.schema import AppSpec
from serving.store import SqlFeedbackStore, SqlItemStore, SqlSessionStore
from serving.store.base import read_counter
from serving.store.people import SqlPeople, ensure_people_secret
from training.config import TrainingConfig
from training.dataset.asked import asked_of
from training.dataset.build import build_dataset
from training.dataset.conversations import build_conversations
from training.dataset.example import DatasetInfo
from training.dataset.request import DatasetRequest
from training.evaluate import Report, metrics_of
from training.evidence import Compared, compare
from training.gates import GateReport, judge
from training.interactions import of_home
from training.job.cluster import Where
from training.job.fit import fit
from training.job.search import Around, search
from training.measure import CaseSet, Measured, feedback_set, load_sets, measure_release
from training.negatives import PipelineMiner, pipeline_miner
from training.order import Comparison, DatasetOrder, Means
from training.people import Forgetting, record_trained
from training.ports import ShowsEvidence, Task, Trained, Trainer
from training.progress import Progress
from training.publish import Judged
from training.runs import Run, Runs
from training.tracking import MlflowTracking, Tracking
from training.trainers import FindTrainer, find_trainer, knows_users, learns_conversations

FEEDBACK = "feedback"
BY_THEMSELVES = frozenset({"auc", "log_loss", "calibration_error", "perplexity"})
"""Metrics that a component shows, and no pipeline's answers do."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the means are made of. `where` the workers run; `mlflow_uri` is told how they fare."""

    config: TrainingConfig
    database: Database
    releases: ReleaseStore
    mlflow_uri: str
    where: Where
    find_trainer: FindTrainer = find_trainer

    def means(self, app: str, progress: Progress) -> Means:
        return Means(
            config=self.config,
            releases=self.releases,
            items=SqlItemStore(self.database),
            runs=Runs(self.database),
            journal=SqlJournal(self.database),
            progress=progress,
            find_trainer=self.find_trainer,
            dataset=self._dataset,
            fit=self._fit,
            tune=self._tune,
            judge=lambda comparison, shown: Gates(self, comparison, shown).judged(),
            track=lambda run, state: self._track(app, run, state),
            interactions=lambda spec, folder: of_home(spec, folder, self.database, self.config.serving),
            forgotten=SqlPeople(self.database).forgotten,
        )

    def _dataset(self, order: DatasetOrder, progress: Progress) -> DatasetInfo:
        """Those who are forgotten are left out; those who are in it are on record before anything learns from it."""
        train, app = order.spec.train[order.name], order.spec.name
        people, feedback = SqlPeople(self.database), SqlFeedbackStore(self.database)
        secret = ensure_people_secret(self.config.home, self.config.serving.secrets)
        Forgetting(feedback, people, secret, self.config.home / "spool", SqlSessionStore(self.database)).purge(app)
        with self.database.reading() as connection:
            heard = read_counter(connection, app, "feedback")
        with ExitStack() as stack, progress.step(f"{order.name}: data set", None):
            request = DatasetRequest(
                app=app,
                data=train.data,
                catalogue=_ids(order.items),
                secret=secret,
                now_s=order.now_s,
                feedback=feedback if train.data.feedback else None,
                app_folder=order.app_folder,
                miner=stack.enter_context(self._miner(order.stable)) if train.data.mined else None,
                forgotten=people.forgotten(app),
                held_out=_held_out(order.spec, order.app_folder),
                per_user=knows_users(self.find_trainer(train.trainer)),
                seed=order.seed,
            )
            if learns_conversations(self.find_trainer(train.trainer)):
                info = build_conversations(request, order.folder, asked_of(order.spec, order.app_folder, order.items))
            else:
                info = build_dataset(request, order.folder)
        record_trained(people, app, info.fingerprint, order.folder)
        # What is left out, such as the last events of somebody who was forgotten, is no reason for another run.
        return replace(info, feedback_seq=max(info.feedback_seq, heard))

    def _miner(self, stable: ReleaseVersion) -> AbstractContextManager[PipelineMiner]:
        spec = AppSpec.model_validate(stable.release.spec)
        return pipeline_miner(spec, self.fetched(stable), self.config.serving)

    def _fit(
        self, trainer: Trainer, task: Task, progress: Progress, tracking: Tracking, stop: Callable[[], bool]
    ) -> Trained:
        return fit(trainer, task, where=self.where, progress=progress, tracking=tracking, stop=stop)

    def _tune(
        self,
        trainer: Trainer,
        task: Task,
        trials: int,
        progress: Progress,
        tracking: Tracking,
        stop: Callable[[], bool],
    ) -> Task:
        found = search(trainer, task, trials, Around(self.where, progress, tracking, stop))
        return replace(task, options=trainer.options.model_validate(dict(found.options)))

    def _track(self, app: str, run: Run, state: Path) -> Tracking:
        return MlflowTracking(self.mlflow_uri, app, f"run {run.id}", state)

    def fetched(self, version: ReleaseVersion) -> Mapping[str, Path]:
        return build.fetch_components(version, self.releases, self.config.serving.component_cache)


class Gates:
    """Candidate and stable on the same frozen sets, with the pipeline that serves; then the gates of every training."""

    def __init__(self, wiring: Wiring, comparison: Comparison, progress: Progress) -> None:
        self._wiring = wiring
        self._comparison = comparison
        self._progress = progress

    def judged(self) -> Judged:
        candidate, stable = self._measured()
        compared = compare(candidate, stable)
        reports = {
            name: judge(task.train.gates, self._results(name, task, component, compared), task.seed)
            for name, (task, component) in self._comparison.tasks.items()
        }
        return Judged(
            passed=all(report.passed for report in reports.values()),
            why=_sentence(reports),
            compared_with=self._comparison.stable.version,
            metrics=_metrics(candidate, reports),
            report={
                "gates": {name: report.to_json() for name, report in reports.items()},
                "candidate": {name: report.to_json() for name, report in candidate.items()},
                "stable": {name: report.to_json() for name, report in stable.items()},
            },
        )

    def _measured(self) -> tuple[dict[str, Report], dict[str, Report]]:
        c, items = self._comparison, SqlItemStore(self._wiring.database)
        sets: dict[str, CaseSet] = load_sets(c.spec.evaluation, c.app_folder)
        for name, (task, _) in c.tasks.items():
            if _asks_pipeline(task):
                sets[f"{FEEDBACK}.{name}"] = feedback_set(task.dataset)
        release = c.stable.release
        theirs = Measured(
            AppSpec.model_validate(release.spec), self._wiring.fetched(c.stable), release.items_seq, items
        )
        ours = Measured(c.spec, c.candidate.named, c.candidate.release.items_seq, items)
        config = self._wiring.config
        return (
            measure_release(ours, config, sets, self._progress),
            measure_release(theirs, config, sets, self._progress),
        )

    def _results(self, name: str, task: Task, component: str, compared: Mapping[str, Compared]) -> dict[str, Compared]:
        """What the training's gates look at: the app's sets, and its own test part as `feedback`."""
        results = {set_name: one for set_name, one in compared.items() if not set_name.startswith(f"{FEEDBACK}.")}
        if (own := compared.get(f"{FEEDBACK}.{name}")) is not None:
            results[FEEDBACK] = own
        elif FEEDBACK in task.train.gates and (shown := self._shown(task, component)) is not None:
            results[FEEDBACK] = shown
        return results

    def _shown(self, task: Task, component: str) -> Compared | None:
        """By the component itself: a ranker's probabilities, a language model's likelihoods."""
        trainer = self._wiring.find_trainer(task.train.trainer)
        if not isinstance(trainer, ShowsEvidence):
            return None
        ours = trainer.evidence(task, self._comparison.candidate.named.get(component))
        theirs = trainer.evidence(task, self._wiring.fetched(self._comparison.stable).get(component))
        return None if ours is None else Compared(ours, theirs)


def _ids(items: Path) -> list[str]:
    with items.open("rb") as lines:
        return [orjson.loads(line)["id"] for line in lines]


def _held_out(spec: AppSpec, app_folder: Path) -> frozenset[str]:
    """The queries of the frozen sets: nothing is learnt from them."""
    sets = load_sets(spec.evaluation, app_folder).values()
    return frozenset(case.query for one in sets for case in one.cases)


def _asks_pipeline(task: Task) -> bool:
    gate = task.train.gates.get(FEEDBACK)
    return gate is not None and gate.metric not in BY_THEMSELVES


def _sentence(reports: Mapping[str, GateReport]) -> str:
    failed = " ".join(report.reason for report in reports.values() if not report.passed)
    if failed:
        return failed
    told = [gate.sentence for report in reports.values() for gate in report.gates]
    return " ".join([*told, *(report.note for report in reports.values() if report.note)])


def _metrics(candidate: Mapping[str, Report], reports: Mapping[str, GateReport]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, report in candidate.items():
        found |= metrics_of(name, report)
    for name, judged in reports.items():
        found |= {f"{name}_{key}": value for key, value in judged.metrics().items()}
    return found
