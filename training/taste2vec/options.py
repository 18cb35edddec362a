"""`train.NAME.options` of the trainer taste2vec."""

from __future__ import annotations

from pydantic import Field

from serving.schema.spec import Spec


class Taste2VecOptions(Spec):
    """The first group is for a training from the beginning, the second for an update of what serves."""

    epochs: int = Field(30, ge=1, le=1000)
    batch: int = Field(64, ge=4, le=4096)
    learning_rate: float = Field(2e-3, gt=0)
    temperature: float = Field(0.07, gt=0)
    push: float = Field(0.5, ge=0, description="Weight of what was turned down.")
    margin: float = Field(0.2, ge=-1, lt=1, description="Cosine below which a pair that was turned down is let be.")
    same_taste: float = Field(0.1, ge=0, lt=1, description="Share of the pull that goes to what else the user likes.")
    alike: float = Field(1.0, ge=0, description="How strongly items that measure alike are kept close.")
    part_dropout: float = Field(0.15, ge=0, lt=1, description="How often a part of a record is left out.")

    update_epochs: int = Field(10, ge=1, le=1000)
    update_rate: float = Field(5e-4, gt=0)
    replay_size: int = Field(10_000, ge=1)
    replay_ratio: float = Field(1.0, ge=0, le=16, description="Old examples beside each new one.")
    anchor: float = Field(2.0, ge=0, description="How strongly old vectors are held where they are.")
