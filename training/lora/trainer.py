"""The trainer `lora`: a causal language model learns to answer as people liked. `training.run` drives it.

torch, transformers and peft are imported by the methods that compute: app.yaml is checked without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from registry.content import digest_json
from serving.schema import AppSpec
from training.errors import TrainingRefused
from training.evidence import TokenScores
from training.lora.instructions import Instruction, read_instructions, split
from training.lora.options import LoraOptions
from training.ports import Loop, NewComponent, Task, Trained

if TYPE_CHECKING:
    from training.lora.model import Base

COMPONENT = "generate.adapter"
ADAPTER_FOLDER = "adapter"


class LoraTrainer:
    """Implements `Trainer` and `ShowsEvidence`."""

    name = "lora"
    conversations = True
    options: type[BaseModel] = LoraOptions

    def component(self, spec: AppSpec) -> str:  # noqa: ARG002 - an app has one generate phase
        return COMPONENT

    def search_space(self, options: BaseModel) -> Mapping[str, tuple[float, float] | tuple[Any, ...]]:  # noqa: ARG002
        return {"learning_rate": (2e-5, 2e-3), "rank": (4, 8, 16, 32), "dropout": (0.0, 0.05, 0.1)}

    def prepare(self, task: Task) -> None:
        """Raises TrainingRefused where there is nothing to learn or to validate on, or no model to begin with."""
        from training.lora.model import Base, base_of

        options = _options(task)
        if options.quantize == "4bit" and not task.train.scaling.num_gpus:
            raise TrainingRefused(
                "options.quantize is 4bit, which needs `scaling.num_gpus`: set it, or `quantize: none`"
            )
        parts = split(read_instructions(task), task.train.data)
        for part in ("train", "validation"):
            if not parts[part]:
                raise TrainingRefused(
                    f"train.{task.name}: of {sum(map(len, parts.values()))} instructions none is in the {part} part: "
                    f"collect more, or raise `data.{part}_ratio`"
                )
        base = base_of(options, task)
        if task.start is not None and (its := Base.load(task.start)).digest != base.digest:
            raise TrainingRefused(
                f"the adapter in use belongs to {its.model!r} ({its.digest[:12]}), but options.model is "
                f"{base.model!r} ({base.digest[:12]}): train with `start: base`"
            )
        base.save(task.work)

    def loop(self, task: Task, loop: Loop) -> None:
        import torch

        from training.lora.loop import Material, Worker
        from training.lora.model import Base, adapter_config, add_adapter, base_folder, load_base, load_tokenizer
        from training.lora.tokens import encode

        options = _options(task)
        folder = base_folder(options, task)
        parts = split(read_instructions(task), task.train.data)
        tokenizer = load_tokenizer(folder)
        train, validation = (encode(parts[p], tokenizer, options.max_tokens) for p in ("train", "validation"))
        torch.manual_seed(task.seed)  # of a new adapter
        model = add_adapter(load_base(folder, options, loop.device), options, task.start)
        worker = Worker(model, Material(train, validation, task.seed), options, loop)
        worker.train(adapter_config(model, Base.load(task.work)))

    def finish(self, task: Task, saved: Path) -> Trained:
        """Needs neither the base nor a GPU."""
        from training.lora.loop import load_state
        from training.lora.model import Base, save_adapter

        state, base = load_state(saved), Base.load(task.work)
        progress = state["progress"]
        folder = task.work / ADAPTER_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        save_adapter(folder, progress["best"], state["config"], base)
        metrics = {name: float(progress[name]) for name in ("perplexity_before", "perplexity", "best_step")}
        component = task.train.component or self.component(task.spec)
        adapter = NewComponent(component, "adapter", folder, fingerprint=base.digest)
        return Trained(components=(adapter,), metrics={**metrics, "steps": float(progress["step"])})

    def evidence(self, task: Task, component: Path | None) -> TokenScores | None:
        """How likely the answers of the test part are with the adapter in `component`. Without one, or where it belongs
        to another base than the task's, with the base alone: token by token only models of one tokenizer compare."""
        import torch
        from peft import PeftModel

        from training.lora.loop import log_likelihoods
        from training.lora.model import Base, base_folder, load_base, load_tokenizer
        from training.lora.tokens import encode

        options = _options(task)
        cases = split(read_instructions(task), task.train.data)["test"]
        if not cases:
            return None
        folder = base_folder(options, task)
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        plain = options.model_copy(update={"quantize": "none"} if device == "cpu" else {})
        tokens = encode(cases, load_tokenizer(folder), options.max_tokens)
        model = load_base(folder, plain, device)
        if component is not None and Base.load(component).digest == _base(task).digest:
            model = PeftModel.from_pretrained(model, str(component))
        told = log_likelihoods(model, tokens, options.mini_batch_size, device)
        counts = np.array([t.learned for t in tokens], np.float64)
        return TokenScores(np.array(told), counts, _members(cases), _key(cases, _base(task)))


def _options(task: Task) -> LoraOptions:
    assert isinstance(task.options, LoraOptions)
    return task.options


def _base(task: Task) -> Base:
    from training.lora.model import Base

    return Base.load(task.work)


def _members(cases: Sequence[Instruction]) -> dict[str, Any]:
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        rows.setdefault(case.slice, []).append(row)
    return {name: np.array(found, np.int64) for name, found in rows.items()}


def _key(cases: Sequence[Instruction], base: Base) -> str:
    told = [[*((m.role, m.content) for m in case.history), case.answer] for case in cases]
    return digest_json({"cases": told, "base": base.digest})


TRAINER = LoraTrainer()
