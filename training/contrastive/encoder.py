"""The model that is trained: a sentence-transformers model, what of it learns, and how texts reach it.

`loop` trains it, `trainer` computes a teacher's vectors with it and writes what came out.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from training.contrastive.options import ContrastiveOptions, LoraOptions
from training.errors import TrainingRefused
from training.export import quiet

ENCODE_BATCH = 64
CHARACTERS_PER_TOKEN = 24
"""A text is cut to this many characters a token before it is tokenised, as serving does."""


class Encoder:
    """A model on a device, with the prompts it was trained with. Queries and documents are texts without them."""

    def __init__(self, folder: Path, options: ContrastiveOptions, device: str, max_tokens: int) -> None:
        """Raises TrainingRefused where the folder holds no such model, or `options` do not fit it."""
        if not (folder / "modules.json").is_file():
            raise TrainingRefused(f"{folder.name} is no sentence-transformers folder: it has no modules.json")
        with quiet():
            self.model = SentenceTransformer(str(folder), device=device, local_files_only=True)
        self.device = device
        self.served = options.dimension or self.model.truncate_dim
        self.model.truncate_dim = None
        self.dimension = int(self.model.get_embedding_dimension() or 0)
        prompts = self.model.prompts or {}
        default = prompts.get(self.model.default_prompt_name or "", "")
        self.query_prompt = prompts.get("query") or default
        self.document_prompt = prompts.get("document") or default
        self._own_tokens = int(self.model.max_seq_length)
        self._tokens = min(x for x in (max_tokens, options.max_tokens, self._own_tokens) if x)
        self._tuner: Any = None
        if too_wide := [size for size in options.matryoshka if size > self.dimension]:
            raise TrainingRefused(f"options.matryoshka: {too_wide} is above the model's {self.dimension} dimensions")
        self._prepare(options)

    def _prepare(self, options: ContrastiveOptions) -> None:
        """Chooses what learns. Everything else is frozen."""
        if options.dropout is not None:
            for module in self.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = options.dropout
        if options.lora:
            self._tuner = _add_lora(self.model, options.lora)
            return
        transformer = self.model[0].auto_model
        if options.train_layers:
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            layers = _layers(transformer)
            for parameter in layers[-options.train_layers :].parameters():
                parameter.requires_grad_(True)
        if options.freeze_embeddings:
            for parameter in transformer.get_input_embeddings().parameters():
                parameter.requires_grad_(False)

    def features(self, texts: Sequence[str], prompt: str = "") -> dict[str, Any]:
        """Tokens of `texts`, padded to the longest, on the model's device."""
        self.model.max_seq_length = self._tokens
        cut = self._tokens * CHARACTERS_PER_TOKEN
        made = self.model.preprocess([(prompt + text)[:cut] for text in texts])
        return {key: value.to(self.device) if hasattr(value, "to") else value for key, value in made.items()}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as `features` reads them."""
        cut = self._tokens * CHARACTERS_PER_TOKEN
        tokens = self.model.tokenizer([text[:cut] for text in texts], truncation=True, max_length=self._tokens)
        return [len(ids) for ids in tokens["input_ids"]]

    def encode(self, texts: Sequence[str], prompt: str = "") -> NDArray[np.float32]:
        """(len(texts), dimension) unit rows, without dropout; not cut to what is served."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        self.model.max_seq_length = self._tokens
        training = self.model.training
        vectors = self.model.encode(
            list(texts), prompt=prompt, batch_size=ENCODE_BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        self.model.train(training)
        return np.asarray(vectors, np.float32)

    def learning(self) -> dict[str, Any]:
        """Name -> parameter of what learns."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Any]:
        """A copy of what learns, on the CPU."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.learning().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        learning = self.learning()
        if learning.keys() != state.keys():
            raise TrainingRefused("the checkpoint is of another model or other options: begin a new run")
        with torch.no_grad():
            for name, parameter in learning.items():
                parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write the model as a sentence-transformers folder without adapter, its vectors cut to what is served."""
        if self._tuner is not None:
            self._tuner.merge_and_unload()
            self._tuner = None
        self.model.max_seq_length = self._own_tokens
        self.model.truncate_dim = self.served
        shutil.rmtree(folder, ignore_errors=True)
        with quiet():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)


def _add_lora(model: Any, options: LoraOptions) -> Any:
    """Puts low-rank differences into the linear layers, in place; everything else is frozen."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets) or "all-linear",
    )
    try:
        return LoraModel(model[0].auto_model, config, "default")
    except ValueError as error:
        raise TrainingRefused(f"options.lora: {error}") from None


def _layers(transformer: Any) -> Any:
    """The stack of layers: the longest list of modules."""
    stacks = [module for module in transformer.modules() if isinstance(module, torch.nn.ModuleList)]
    if not stacks:
        raise TrainingRefused(f"options.train_layers: {type(transformer).__name__} has no stack of layers")
    return max(stacks, key=len)
