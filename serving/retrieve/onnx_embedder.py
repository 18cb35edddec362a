"""The embedder on CPU: an exported component on ONNX Runtime. It imports neither torch nor transformers.

`make_embedder` makes it for serving and for building an index. The vectors of float32 do not depend on what else is in
the batch. Those of int8 do, a little: activations are quantised with one scale for a whole batch, so the same text
alone and in a full batch has a cosine of 0.995 on average and 0.98 at worst (MiniLM over package descriptions; 0.967
for a text without words). That is about as far as int8 is from float32; the gate measures retrieval in real batches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from serving.components.embedder import MODEL_FILES, TOKENIZER_FILE, EmbedderInfo, component_file, fingerprint
from serving.components.onnx_encoder import OnnxEncoder, Progress
from serving.errors import BadRequest
from serving.ports import Vectors


class OnnxEmbedder:
    """Implements `DocumentEmbedder`; thread-safe. `threads` 0: all cores this process may use."""

    def __init__(self, folder: Path, precision: str = "auto", threads: int = 0, max_tokens: int | None = None) -> None:
        """Raises BadRequest for an unknown precision, PhaseFailed for a component that cannot be used."""
        if threads < 0:
            raise BadRequest(f"threads is {threads}; use 0 for all cores, or a count", field="threads")
        self.info = EmbedderInfo.load(folder)
        self.precision = self.info.resolve(precision)
        self.fingerprint = fingerprint(folder, precision, max_tokens)
        self.dimension = self.info.dimension
        self._encoder = OnnxEncoder(
            component_file(folder, MODEL_FILES[self.precision]),
            component_file(folder, TOKENIZER_FILE),
            max_tokens=self.info.token_limit(max_tokens),
            pad_token_id=self.info.pad_token_id,
            threads=threads or len(os.sched_getaffinity(0)),
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._encoder.encode([self.info.query_prompt + text for text in texts])

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        return self._encoder.encode([self.info.document_prompt + text for text in texts], progress)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._encoder.count_tokens([self.info.query_prompt + text for text in texts])
