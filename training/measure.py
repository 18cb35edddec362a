"""Runs the evaluation sets of an app against a release's components, with the pipeline that serves them.

`training.cli` measures one release for `palate index` and `palate evaluate`; `training.run` measures candidate and
stable, one after the other, on the same cases, for `training.gates`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from serving import build
from serving.components.catalogue import Catalogue
from serving.errors import BadRequest
from serving.ports import ItemStore
from serving.schema import AppSpec, EvaluationSpec, Item, Query
from training.cases import Case, load_cases
from training.config import TrainingConfig
from training.dataset import load_info, read_examples
from training.evaluate import RankedAnswer, Report, evaluate_cases
from training.progress import Progress, Step

FEEDBACK = "feedback"
"""The set that is made of the test part of a data set."""
NEW_ITEMS = "new items"
PAGE = 500


@dataclass(frozen=True, slots=True)
class CaseSet:
    """A frozen set of cases; `k` results are asked for each."""

    cases: tuple[Case, ...]
    k: int = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """A release to measure: its spec and the folders of its components, by name. With `items`, the changes of the
    catalogue after `items_seq` are applied first, as its replicas do: two releases then know the same items."""

    spec: AppSpec
    components: Mapping[str, Path]
    items_seq: int = 0
    items: ItemStore | None = None


def load_sets(sets: Mapping[str, EvaluationSpec], app_folder: Path) -> dict[str, CaseSet]:
    """The sets of app.yaml. Raises CasesInvalid."""
    return {name: CaseSet(tuple(load_cases(e.source, app_folder)), e.k) for name, e in sets.items()}


def feedback_set(dataset: Path, k: int = 10) -> CaseSet:
    """What users chose, in the test part of the data set in folder `dataset`: a case per query (and record), which
    accepts every item that was right for it. A case whose items no training example named is in the slice `new items`,
    too. Queries come in the order in which they were first asked; a query's slice is that of its first example."""
    unseen = frozenset(load_info(dataset).unseen_items)
    found: dict[tuple[str, str], tuple[Case, set[str]]] = {}
    for example in read_examples(dataset / "test.jsonl"):
        if example.label:
            first = Case(example.query, frozenset(), example.slice, record=example.record)
            _, accept = found.setdefault((example.query, repr(sorted(example.record.items()))), (first, set()))
            accept.add(example.item)
    return CaseSet(
        tuple(
            Case(c.query, frozenset(accept), c.slice, also=(NEW_ITEMS,) if accept <= unseen else (), record=c.record)
            for c, accept in found.values()
        ),
        k,
    )


def measure(
    spec: AppSpec,
    app_folder: Path,
    components: Mapping[str, Path],
    config: TrainingConfig,
    sets: Mapping[str, EvaluationSpec],
    progress: Progress,
) -> dict[str, Report]:
    """Evaluation set -> its report. `components` maps a component's name to its folder."""
    return measure_release(Measured(spec, components), config, load_sets(sets, app_folder), progress)


def measure_release(
    release: Measured, config: TrainingConfig, sets: Mapping[str, CaseSet], progress: Progress
) -> dict[str, Report]:
    """Set -> its report. The release is loaded once for all sets and let go before this returns."""
    if not sets:
        return {}
    spec = release.spec
    embedders = build.build_embedders(spec, release.components, config.serving)
    near = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
    catalogue = Catalogue.load(release.components["catalogue"])
    retrieval = build.build_retrieval(spec, release.components, near, catalogue)
    _catch_up(release, retrieval.apply)
    ranking = build.build_ranking(spec, release.components, catalogue)
    pipeline = build.build_pipeline(build.build_understand(spec, release.components), retrieval, ranking)
    reports: dict[str, Report] = {}
    with asyncio.Runner() as runner:
        for name, case_set in sets.items():

            def answer(cases: Sequence[Case], k: int = case_set.k) -> list[RankedAnswer]:
                queries = [Query(case.query, top_k=k, record=case.record, like=case.like) for case in cases]
                firsts = [answer.lines[0].result for answer in runner.run(pipeline.answer(queries))]
                return [RankedAnswer(tuple(c.id for c in first.candidates), first.abstained) for first in firsts]

            with progress.step(f"measuring {name}", len(case_set.cases)) as step:
                reports[name] = evaluate_cases(answer, case_set.cases, case_set.k, progress=_counting(step))
    return reports


def _catch_up(release: Measured, apply: Callable[[Sequence[Item], Sequence[str]], None]) -> None:
    """A change that the release cannot take is left out, as in its replicas."""
    if release.items is None:
        return
    seq = release.items_seq
    while True:
        upserts, deletes, seq = release.items.changes(release.spec.name, seq, PAGE)
        if not upserts and not deletes:
            return
        try:
            apply(upserts, deletes)
        except BadRequest:
            for item in upserts:
                with suppress(BadRequest):
                    apply([item], [])
            apply([], deletes)


def _counting(step: Step) -> Callable[[int, int], None]:
    return lambda done, _: step(done)


def variant(spec: AppSpec, only: Sequence[str], options: Sequence[str], abstain_below: float | None = None) -> AppSpec:
    """The spec with only some of its sources, with engine constants changed ("rules.jamo=0") or with another threshold
    of abstention, to see what each is worth. Raises BadRequest that names what there is."""
    raw = spec.model_dump(mode="json", exclude_unset=True)
    sources, fusion = raw["retrieve"]["sources"], raw["retrieve"].get("fusion", {})
    for name in only:
        if name not in sources:
            raise BadRequest(f"there is no source {name!r}; there are {sorted(sources)}", field="only")
    if only:
        raw["retrieve"]["sources"] = {name: sources[name] for name in only}
        if "order" in fusion:
            fusion["order"] = [name for name in fusion["order"] if name in only]
    if abstain_below is not None:
        raw["retrieve"].setdefault("fusion", {})["abstain_below"] = abstain_below
    for text in options:
        path, equals, number = text.partition("=")
        source, dot, key = path.partition(".")
        if not (equals and dot and source in raw["retrieve"]["sources"]):
            raise BadRequest(f"{text!r} is not SOURCE.NAME=NUMBER with a source of {sorted(sources)}", field="option")
        try:
            raw["retrieve"]["sources"][source].setdefault("options", {})[key] = float(number)
        except ValueError:
            raise BadRequest(f"{text!r}: {number!r} is not a number", field="option") from None
    try:
        return AppSpec.model_validate(raw)
    except ValidationError as error:
        raise BadRequest(f"the variant cannot be: {error.errors()[0]['msg']}", field="option") from None
