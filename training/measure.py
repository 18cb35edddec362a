"""Runs the evaluation sets of an app.yaml against a release's components, with the pipeline that serves them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from serving import build
from serving.errors import BadRequest
from serving.schema import AppSpec, EvaluationSpec, Query
from training.config import TrainingConfig
from training.evaluate import RankedAnswer, Report, evaluate, load_cases
from training.progress import Progress, Step


def measure(
    spec: AppSpec,
    app_folder: Path,
    components: Mapping[str, Path],
    config: TrainingConfig,
    sets: Mapping[str, EvaluationSpec],
    progress: Progress,
) -> dict[str, Report]:
    """Evaluation set -> its report. `components` maps a component's name to its folder."""
    if not sets:
        return {}
    embedders = build.build_embedders(spec, components, config.serving)
    retrieval = build.build_retrieval(spec, components, {n: build.near(spec.name, e) for n, e in embedders.items()})
    pipeline = build.build_pipeline(build.build_understander(spec), retrieval)
    reports: dict[str, Report] = {}
    with asyncio.Runner() as runner:
        for name, evaluation in sets.items():
            cases = load_cases(evaluation.source, app_folder)

            def ask(texts: Sequence[str], k: int = evaluation.k) -> list[RankedAnswer]:
                answers = runner.run(pipeline.answer([Query(text, top_k=k) for text in texts]))
                firsts = [answer.lines[0].result for answer in answers]
                return [RankedAnswer(tuple(c.id for c in first.candidates), first.abstained) for first in firsts]

            with progress.step(f"measuring {name}", len(cases)) as step:
                reports[name] = evaluate(ask, cases, k=evaluation.k, progress=_counting(step))
    return reports


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
