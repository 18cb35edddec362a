"""`train.NAME.options` of the trainer `contrastive`. Pure; `trainer` validates with it, the rest here reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from serving.schema.spec import Spec


class LoraOptions(Spec):
    """Train low-rank differences of the linear layers (Hu et al. 2021, arXiv 2106.09685) instead of all weights; they
    are merged into the model when training ends, so that what is exported and served has no adapter."""

    rank: int = Field(16, ge=1, le=512)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field((), description="Names of linear layers; default: all of the encoder's.")


class VocabularyOptions(Spec):
    """Give the model words of a script that it can only spell, learnt from the pairs before the training begins
    (`training.contrastive.vocabulary`)."""

    script: str = Field("Hangul", pattern=r"^[A-Za-z]+$", description="As Unicode's names of its letters begin.")
    size: int = Field(6000, ge=1, le=100_000, description="Pieces of words at most.")
    least: int = Field(3, ge=1, description="Times that a piece stands in the queries.")
    meanings: int = Field(8, ge=1, le=100, description="Of an item's words, that a new one begins as the mean of.")


class ContrastiveOptions(Spec):
    """mnrl: MultipleNegativesRankingLoss, the other items of a batch are the wrong ones (Henderson et al. 2017, arXiv
    1705.00652). cached_mnrl: the same for batches larger than memory (Gao et al. 2021, arXiv 2101.06983). distill: the
    model as it was is the teacher; a query's vector goes to where its item's vector is, and items stay where they are
    (Reimers, Gurevych 2020, arXiv 2004.09813)."""

    method: Literal["mnrl", "cached_mnrl", "distill"] = "mnrl"
    epochs: int = Field(3, ge=1, le=1000)
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps at most, whatever `epochs` says.")
    batch_size: int = Field(32, ge=2, le=16_384, description="Pairs of one loss, over all workers.")
    mini_batch_size: int = Field(32, ge=1, le=4096, description="cached_mnrl: texts in memory at once.")
    accumulate: int = Field(1, ge=1, le=1024, description="Batches per optimiser step.")
    learning_rate: float = Field(5e-5, gt=0, le=0.1)
    weight_decay: float = Field(0.01, ge=0, le=1)
    warmup_ratio: float = Field(
        0.1, ge=0, le=1, description="Share of the steps in which the rate rises; it then falls."
    )
    max_grad_norm: float = Field(1.0, gt=0)
    scale: float = Field(20.0, gt=0, le=1000, description="1 / temperature of the softmax over cosines.")
    symmetric: bool = Field(False, description="Items look for their queries, too.")
    hard_negatives: int = Field(1, ge=0, le=32, description="Of a query's turned-down items, drawn for each pair.")
    keep_weight: float = Field(1.0, ge=0, le=100, description="distill: how much items shall stay where they are.")
    max_tokens: int | None = Field(None, ge=8, le=8192, description="In training; default: as the source reads.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Default: the model's own.")
    vocabulary: VocabularyOptions | None = None
    lora: LoraOptions | None = None
    freeze_embeddings: bool = Field(False, description="Leave the token embeddings as they are.")
    train_layers: int | None = Field(None, ge=1, description="Train only this many layers at the top.")
    matryoshka: tuple[int, ...] = Field((), description="Vectors cut to these dimensions are trained as well.")
    dimension: int | None = Field(None, ge=1, description="Serve vectors cut to this; one of `matryoshka`.")
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it."
    )
    evaluate_every: int = Field(100, ge=1, description="Steps between two validations, and checkpoints.")
    validation_queries: int = Field(500, ge=1, le=100_000)
    validation_items: int = Field(2000, ge=1, le=1_000_000, description="Items that validation searches, at most.")
    keep: Literal["best", "last"] = Field("best", description="best: by the mean reciprocal rank of validation.")

    @model_validator(mode="after")
    def _parts_fit(self) -> ContrastiveOptions:
        if any(size < 1 for size in self.matryoshka) or len(set(self.matryoshka)) != len(self.matryoshka):
            raise ValueError(f"`matryoshka` lists different dimensions from 1 on, not {list(self.matryoshka)}")
        if self.dimension is not None and self.dimension not in self.matryoshka:
            raise ValueError(
                f"`dimension` is {self.dimension}, which `matryoshka` {list(self.matryoshka)} does not train: add it"
            )
        if self.lora and (self.freeze_embeddings or self.train_layers):
            raise ValueError("`lora` trains its own weights only: leave out `freeze_embeddings` and `train_layers`")
        return self
