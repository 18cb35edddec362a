"""`train.NAME.options` of the trainer `lora`. Pure; `trainer` validates with it, the rest here reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.schema.spec import Spec


class LoraOptions(Spec):
    """Low-rank differences of a language model's linear layers (Hu et al. 2021, arXiv 2106.09685); with `quantize:
    4bit` over a base held in four bits (Dettmers et al. 2023, arXiv 2305.14314), which needs a GPU.

    The rank and the layers of an adapter that training goes on from (`start: stable`) are its own.
    """

    model: str = Field(min_length=1, description="A Hugging Face folder beside app.yaml or elsewhere, or a hub's name.")
    revision: str | None = Field(None, description="Of a model of the hub; a commit makes training repeatable.")
    instructions: str | None = Field(
        None,
        description="Beside conversations: a .jsonl file, or a script (.py, with arguments) that prints such lines, of "
        "`prompt` and `answer`, or of `messages`.",
    )
    max_tokens: int = Field(512, ge=8, le=131_072, description="Longer prompts lose their beginning.")
    rank: int = Field(16, ge=1, le=512)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field((), description="Names of linear layers; default: all but the output.")
    quantize: Literal["none", "4bit"] = "none"
    gradient_checkpointing: bool = Field(False, description="Compute twice to hold less in memory.")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it.")
    epochs: int = Field(3, ge=1, le=1000)
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps at most, whatever `epochs` says.")
    batch_size: int = Field(16, ge=1, le=16_384, description="Examples of one step, over all workers.")
    mini_batch_size: int = Field(4, ge=1, le=4096, description="Examples in memory at once.")
    learning_rate: float = Field(2e-4, gt=0, le=0.1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of the steps in which the rate rises.")
    max_grad_norm: float = Field(1.0, gt=0)
    evaluate_every: int = Field(50, ge=1, description="Steps between two validations, and checkpoints.")
    patience: int = Field(3, ge=1, description="Validations without a gain after which training ends.")
