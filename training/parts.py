"""The components of a release that are made of files beside app.yaml, and of what users did.

`training.index` calls it. Embedders and their indexes, which take minutes, it makes itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from serving import build
from serving.components.lexicon import build_lexicon
from serving.generate.prompt import PROMPT_FILE, SCHEMA_FILE, parse_prompt
from serving.schema import AppSpec, Item
from serving.schema.app_spec import FUNNELS
from training.errors import TrainingRefused
from training.funnels import make_funnel
from training.interactions import Interactions
from training.ports import NewComponent

UNDERSTAND, RANK, GENERATE = "understand", "rank", "generate"


@dataclass(frozen=True)
class Parts:
    """Built into `work`. `interactions` is asked once, and only where a source learns from them."""

    spec: AppSpec
    app_folder: Path
    work: Path
    interactions: Callable[[], Interactions]

    def build(self) -> list[NewComponent]:
        """Lexicon, cross-encoder and prompt. Raises BadRequest that names the key, TrainingRefused, OSError."""
        return [*self._lexicon(), *self._cross_encoder(), *self._prompt()]

    @cached_property
    def what_users_did(self) -> Interactions:
        return self.interactions()

    @property
    def learns_from_users(self) -> bool:
        return any(source.engine in FUNNELS for source in self.spec.retrieve.sources.values())

    def funnel(self, name: str, catalogue: Sequence[Item]) -> NewComponent:
        """Raises DatasetInvalid for interactions that cannot be read, StoreUnavailable."""
        folder = self.work / f"retrieve.{name}"
        make_funnel(self.spec, self.spec.retrieve.sources[name], catalogue, self.what_users_did).save(folder)
        return NewComponent(f"retrieve.{name}", "funnel", folder)

    def _lexicon(self) -> list[NewComponent]:
        if not self.spec.understand.lexicon:
            return []
        folder = self.work / UNDERSTAND
        build_lexicon(folder, self.app_folder / self.spec.understand.lexicon, self.spec)
        return [NewComponent(UNDERSTAND, "lexicon", folder)]

    def _cross_encoder(self) -> list[NewComponent]:
        if self.spec.rank is None or self.spec.rank.engine != "cross_encoder":
            return []
        folder, model = self.work / RANK, self.app_folder / self.spec.rank.model
        if model.is_dir():
            shutil.copytree(model, folder)
        else:
            from sentence_transformers import CrossEncoder  # torch: only where there is such a model

            try:
                CrossEncoder(self.spec.rank.model).save_pretrained(str(folder))
            except (OSError, ValueError) as error:
                raise TrainingRefused(
                    f"rank.model is {self.spec.rank.model!r}, but there is no folder {model}, and the hub does not "
                    f"give such a model: {error}"
                ) from error
        return [NewComponent(RANK, "cross_encoder", folder)]

    def _prompt(self) -> list[NewComponent]:
        """Read before it goes into a release: one with a bad prompt is never built."""
        generate = self.spec.generate
        if generate is None:
            return []
        folder = self.work / GENERATE
        folder.mkdir(parents=True, exist_ok=True)
        copied = self._copy(generate.prompt, folder / PROMPT_FILE, "generate.prompt")
        if generate.output_schema:
            self._copy(generate.output_schema, folder / SCHEMA_FILE, "generate.output_schema")
        for name, form in parse_prompt(copied.read_text(encoding="utf-8")).forms.items():
            if form.output_schema:
                self._copy(form.output_schema, folder / Path(form.output_schema).name, f"forms.{name}.output_schema")
        build.load_prompt(generate, folder)
        return [NewComponent(GENERATE, "prompt", folder)]

    def _copy(self, source: str, target: Path, key: str) -> Path:
        file = self.app_folder / source
        if not file.is_file():
            raise TrainingRefused(f"{key} is {source!r}, but there is no {file}")
        shutil.copyfile(file, target)
        return target
