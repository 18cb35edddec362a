"""The number format that a model is held and trained in. Called by the trainers of torch models."""

from __future__ import annotations

from typing import Any, Literal

import torch

from training.errors import TrainingRefused

Precision = Literal["auto", "float32", "bf16", "fp16"]


def dtype_of(precision: Precision, device: str) -> Any:
    """The torch dtype. `auto`: bf16 on a GPU that has it, else float32. Raises TrainingRefused for fp16 without a GPU,
    where nothing is gained by it."""
    on_gpu = device.startswith("cuda")
    if precision == "fp16" and not on_gpu:
        raise TrainingRefused("options.precision is fp16, which needs a GPU: use `auto`, or scaling.num_gpus")
    if precision == "auto":
        return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
