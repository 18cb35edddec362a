"""How a training or indexing process is set up: the environment of serving, plus where vectors live."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serving.config import ServingConfig


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """`chroma_url` empty: Chroma embedded, in `home/chroma`."""

    serving: ServingConfig
    chroma_url: str = ""

    @property
    def home(self) -> Path:
        return self.serving.home

    @classmethod
    def from_env(cls, home: Path | None = None) -> TrainingConfig:
        serving = ServingConfig.from_env()
        if home is not None:
            serving = serving.model_copy(update={"home": home})
        return cls(serving, os.environ.get("PALATE_CHROMA_URL", ""))
