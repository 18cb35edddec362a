"""Chooses the adapter of an embedder component: one that reads records where it is such a component; else torch where
CUDA is and the component has torch weights, else ONNX.

`build` calls it for serving; building an index goes through `build` too, so both make the same vectors.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from serving.components import taste
from serving.components.embedder import TORCH_FOLDER
from serving.ports import DocumentEmbedder
from serving.retrieve.onnx_embedder import OnnxEmbedder
from serving.retrieve.taste_embedder import TasteEmbedder
from serving.retrieve.torch_embedder import TorchEmbedder


def make_embedder(
    folder: Path, precision: str = "auto", *, threads: int = 0, max_tokens: int | None = None
) -> DocumentEmbedder:
    """`threads` 0: all cores this process may use. An int8 that was asked for by name stays on the CPU. Raises
    BadRequest for an unknown precision, PhaseFailed for a component that cannot be used."""
    if (folder / taste.INFO_FILE).is_file():
        return TasteEmbedder(folder, precision, threads, max_tokens)
    if precision != "int8" and (folder / TORCH_FOLDER).is_dir() and _has_cuda():
        return TorchEmbedder(folder, "cuda", precision, max_tokens)
    return OnnxEmbedder(folder, precision, threads, max_tokens)


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
