"""A cross-encoder as the rank phase asks it: a model that reads query and item together (Nogueira, Cho 2019, "Passage
Re-ranking with BERT", arXiv 1901.04085), more exact than two vectors and far slower: for tens of candidates.

The folder is one that sentence-transformers' CrossEncoder wrote or reads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.content import digest_json
from serving.components.text import item_text
from serving.errors import PhaseFailed
from serving.ports import ToRank

BATCH = 32


class CrossEncoderRanker:
    """Satisfies `serving.ports.Ranker`. `fields` of an item are read, in this order. Users and records are not."""

    def __init__(self, folder: Path, fields: Sequence[str], device: str = "cpu", threads: int = 1) -> None:
        """Raises PhaseFailed where `folder` holds no model that can be loaded or that gives one score a pair."""
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(max(threads, 1))
        try:
            self._model: Any = CrossEncoder(
                str(folder), device=device, local_files_only=True, activation_fn=torch.nn.Sigmoid()
            )
        except (OSError, ValueError, KeyError) as error:
            raise PhaseFailed(f"the cross-encoder cannot be loaded: {error}", phase="rank") from error
        if self._model.num_labels != 1:
            raise PhaseFailed(
                f"the cross-encoder gives {self._model.num_labels} scores a pair: a ranker needs one", phase="rank"
            )
        self._fields = tuple(fields)
        self._one_at_a_time = threading.Lock()  # its tokenizer cannot be shared by threads
        self.fingerprint = digest_json({"cross_encoder": self._fields})

    def score(self, batch: Sequence[ToRank]) -> list[NDArray[np.float32]]:
        """As the port: the model's logit as a probability."""
        counts = [len(one.items) for one in batch]
        pairs = [(one.text, item_text(item, self._fields)) for one in batch for item in one.items]
        if not pairs:
            return [np.empty(0, np.float32) for _ in batch]
        with self._one_at_a_time:
            scores = self._model.predict(pairs, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.split(np.asarray(scores, np.float32), np.cumsum(counts)[:-1])
