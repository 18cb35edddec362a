"""The embedder of texts with records: a sentence embedder and a small encoder, both on ONNX Runtime.

`make_embedder` makes it for a component of `serving.components.taste`. The sentence embedder does nearly all of its
work; the encoder adds some tens of microseconds a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from registry.content import digest_json
from serving.components.embedder import component_file
from serving.components.onnx_encoder import Progress, open_session
from serving.components.record import take_apart
from serving.components.taste import HEAD_FILE, TEXT_FOLDER, TasteInfo, TasteReader
from serving.errors import BadRequest
from serving.ports import Vectors
from serving.retrieve.onnx_embedder import OnnxEmbedder

PAGE = 1024
"""Inputs that are read together: bounds the memory of their arrays."""


class TasteEmbedder:
    """Implements `DocumentEmbedder`; thread-safe. An input is a text, with a record behind it where there is one (see
    `serving.components.record`)."""

    def __init__(self, folder: Path, precision: str = "auto", threads: int = 0, max_tokens: int | None = None) -> None:
        """Raises BadRequest for a precision by name, PhaseFailed for a component that cannot be used."""
        if precision != "auto":
            raise BadRequest(f"precision is {precision!r}: an encoder of records has `auto` only", field="precision")
        self.info = TasteInfo.load(folder)
        self.dimension = self.info.dimension
        self._text = OnnxEmbedder(folder / TEXT_FOLDER, precision, threads, max_tokens)
        self._reader = TasteReader(self.info, self._text.embed)
        head = component_file(folder, HEAD_FILE)
        self._session = open_session(head)
        self.fingerprint = digest_json(
            {
                "text": self._text.fingerprint,
                "encoder": hashlib.sha256(head.read_bytes()).hexdigest(),
                # As lists: the order of the fields is that of the encoder's columns.
                "metrics": [[n, m.model_dump()] for n, m in self.info.reads.metrics.items()],
                "context": [[n, c.model_dump()] for n, c in self.info.reads.context.items()],
                "vocabulary": [[group, list(senses.items())] for group, senses in self.info.vocabulary.items()],
            }
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self.embed_documents(texts)

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        result = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), PAGE):
            inputs = self._reader.read(texts[start : start + PAGE])
            result[start : start + PAGE] = self._session.run(None, inputs._asdict())[0]
            if progress:
                progress(min(start + PAGE, len(texts)), len(texts))
        return result

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._text.count_tokens([take_apart(text)[0] for text in texts])
