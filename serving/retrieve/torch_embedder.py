"""The embedder on a GPU: the torch weights of a component through sentence-transformers, in half precision.

`make_embedder` makes it where CUDA is. torch is imported only when one is made.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.components.embedder import TORCH_FOLDER, EmbedderInfo, fingerprint
from serving.components.onnx_encoder import CHARACTERS_PER_TOKEN, Progress
from serving.errors import PhaseFailed
from serving.ports import Vectors

BATCH = 64


class TorchEmbedder:
    """Implements `DocumentEmbedder`; float16 on a GPU, float32 on a CPU; one call computes at a time.

    Its fingerprint is that of the component's ONNX embedder: half precision is closer to float32 than the int8 gate
    asks of int8, and the gate measured float32 queries over int8 documents, so either may search the other's index.
    """

    def __init__(
        self, folder: Path, device: str = "cuda", precision: str = "auto", max_tokens: int | None = None
    ) -> None:
        """Raises BadRequest for an unknown precision, PhaseFailed where the torch weights are missing."""
        self.info = EmbedderInfo.load(folder)
        self.fingerprint = fingerprint(folder, precision, max_tokens)
        self.dimension = self.info.dimension
        weights = folder / TORCH_FOLDER
        if not weights.is_dir():
            raise PhaseFailed(
                f"the embedder {folder.name!r} has no torch weights; export it with torch_weights=True", phase="embed"
            )
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(weights), device=device, local_files_only=True)
        self._model.max_seq_length = self.info.token_limit(max_tokens)
        self._max_characters = self._model.max_seq_length * CHARACTERS_PER_TOKEN
        if device != "cpu":
            self._model.half()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._encode([self.info.query_prompt + text for text in texts])

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        prompted = [self.info.document_prompt + text for text in texts]
        page = BATCH * 64  # sorted by length within a page; progress is told after each
        pages = []
        for start in range(0, len(prompted), page):
            pages.append(self._encode(prompted[start : start + page]))
            if progress:
                progress(min(start + page, len(prompted)), len(prompted))
        return np.concatenate(pages) if pages else np.empty((0, self.dimension), np.float32)

    def count_tokens(self, texts: Sequence[str]) -> int:
        prompted = [(self.info.query_prompt + text)[: self._max_characters] for text in texts]
        if not prompted:
            return 0
        with self._lock:
            tokens = self._model.tokenizer(prompted, truncation=True, max_length=self._model.max_seq_length)
        return sum(len(ids) for ids in tokens["input_ids"])

    def _encode(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        with self._lock:
            vectors = self._model.encode(
                [text[: self._max_characters] for text in texts],
                prompt="",
                batch_size=BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        # Rows that were normalised in half precision are off by 1e-3.
        full = np.asarray(vectors, np.float32)
        return np.asarray(full / np.maximum(np.linalg.norm(full, axis=1, keepdims=True), 1e-12), np.float32)
