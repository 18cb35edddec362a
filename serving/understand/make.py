"""Makes the understand phase of an app. Called by `serving.build`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from registry.errors import ReleaseRefused
from serving.components.lexicon import Lexicon
from serving.pipeline import Understand
from serving.ports import LanguageModel, Understander
from serving.schema import AppSpec, Query, Understood
from serving.understand.llm_engine import LlmEngine
from serving.understand.order_lines import OrderLines
from serving.understand.plain import Plain
from serving.understand.rules_engine import RulesEngine

COMPONENT = "understand"


def make_understander(spec: AppSpec, folder: Path | None = None) -> Understander:
    """What needs no language model. `folder`: of the component `understand`, where the release has one. Raises
    ReleaseRefused where the engine needs one, BadRequest for a lexicon that cannot be read."""
    if spec.understand.engine == "order_lines":
        return OrderLines(spec.understand.max_lines)
    if spec.understand.engine == "plain":
        return Plain()
    if folder is None:
        raise ReleaseRefused(
            f"understand.engine is {spec.understand.engine!r}, but the release has no component {COMPONENT!r}: build "
            f"it again with `palate index {spec.name}`"
        )
    return RulesEngine(Lexicon.load(folder))


def make_understand(spec: AppSpec, folder: Path | None = None, model: LanguageModel | None = None) -> Understand:
    """The phase, for batches. Without `model` an app of engine `llm` is understood by its rules. Raises as
    `make_understander`."""
    understander = make_understander(spec, folder)
    if spec.understand.engine == "llm" and model is not None:
        assert isinstance(understander, RulesEngine)
        return LlmEngine(understander, model, spec.understand)

    async def understand(queries: Sequence[Query]) -> list[list[Understood]]:
        return understander.understand(queries)  # string work of microseconds: a thread would cost more

    return understand
