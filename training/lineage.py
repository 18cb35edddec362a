"""The keys of a release's lineage: what it was made of, and which data and options trained its parts.

Written by `training.index` and `training.publish`; read by the next build, by the next training, and by `palate forget`
to find the releases that a person's data went into. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.content import digest_json
from registry.schema import Release
from serving.schema import TrainSpec

PARENT = "train.parent"
"""The version that was stable when the training began."""
INTERACTIONS = "interactions"
"""The fingerprint of what users did, where sources learnt from it."""


def base_key(embedder: str) -> str:
    """The digest of the model that app.yaml names for the component `embedder.NAME`."""
    return f"{embedder}.base"


def model_key(embedder: str) -> str:
    """The digest of the model that was exported: the base, or what a training made of it."""
    return f"{embedder}.model"


def trained_key(component: str) -> str:
    """The name in `train:` of the training that made the component."""
    return f"{component}.trained_by"


def base_of(release: Release, embedder: str) -> str | None:
    return release.lineage.get(base_key(embedder)) or release.lineage.get(model_key(embedder))


def dataset_key(training: str) -> str:
    """The fingerprint of the data set that the training learnt from."""
    return f"train.{training}.dataset"


def started_from_key(training: str) -> str:
    """The digest of the component of the stable release that the training began with; "" for the base model."""
    return f"train.{training}.started_from"


def of_training(
    name: str, train: TrainSpec, options: Mapping[str, Any], fingerprint: str, started_from: str
) -> dict[str, str]:
    """`options` are those it was trained with, `started_from` the digest of the component of the stable release that it
    began with; "" for the base model."""
    return {
        dataset_key(name): fingerprint,
        f"train.{name}.options": digest_json({"trainer": train.trainer, "options": options}),
        f"train.{name}.seed": str(train.seed),
        started_from_key(name): started_from,
    }
