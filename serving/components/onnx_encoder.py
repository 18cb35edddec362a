"""Runs the ONNX graph of an embedder: texts in, unit vectors out. tokenizers, onnxruntime and numpy, nothing heavier.

`serving.retrieve.onnx_embedder` serves with it, `training.export` checks and gates with it, so what is measured is
what is served.

Speed: texts are sorted by length and cut into small batches, each padded to its own longest text, and each batch runs
on one thread, `threads` batches at a time. That beats ONNX Runtime's own threads, which wait for each other at every
node; and a batch of 16 keeps its activations inside the processor's second-level cache, which 64 do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serving.errors import PhaseFailed

BATCH = 16
CHARACTERS_PER_TOKEN = 24
"""A text is cut to this many characters a token before it is tokenised: no natural text comes near it, and a text of
megabytes must not cost seconds."""

SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""Its CPU kernel takes five times as long as the addition and the layer norm it replaces: 20 % of an int8 batch."""

Progress = Callable[[int, int], None]
"""(texts done, texts in all)."""


class OnnxEncoder:
    """Thread-safe. `threads` bounds the cores one call uses; a call of one batch runs in the caller's own thread."""

    def __init__(self, model: Path, tokenizer: Path, *, max_tokens: int, pad_token_id: int, threads: int) -> None:
        # The thread pools of tokenizers would compete with ours, and do not survive a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._pad = pad_token_id
        self._max_characters = max_tokens * CHARACTERS_PER_TOKEN
        self._session = _session(model)
        self._tokenizer = _tokenizer(tokenizer, max_tokens)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="embed") if threads > 1 else None
        shape = self._session.get_outputs()[0].shape
        self.dimension = int(shape[-1])

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """(len(texts), dimension) float32 unit rows in the order given. Memory: the result and a few batches."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        if len(texts) <= BATCH // 2:
            self._run(texts, range(len(texts)), vectors)
            return vectors
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)  # the largest first: one peak
        size = min(BATCH, max(BATCH // 2, -(-len(texts) // self._threads)))
        batches = (by_length[start : start + size] for start in range(0, len(texts), size))
        done = 0
        for rows in self._each(texts, batches, vectors):
            done += rows
            if progress:
                progress(done, len(texts))
        return vectors

    def _each(self, texts: Sequence[str], batches: Iterator[list[int]], vectors: NDArray[np.float32]) -> Iterator[int]:
        """Run the batches, at most two per thread under way; yields the rows of each."""
        if self._pool is None:
            for rows in batches:
                yield self._run(texts, rows, vectors)
            return
        running: list[Future[int]] = [
            self._pool.submit(self._run, texts, rows, vectors) for rows in islice(batches, 2 * self._threads)
        ]
        while running:
            yield running.pop(0).result()
            running.extend(self._pool.submit(self._run, texts, rows, vectors) for rows in islice(batches, 1))

    def _run(self, texts: Sequence[str], rows: Sequence[int], vectors: NDArray[np.float32]) -> int:
        if not rows:
            return 0
        cut = [texts[row][: self._max_characters] for row in rows]
        if len(cut) == 1:
            ids = np.array([self._tokenizer.encode(cut[0]).ids], np.int64)
            mask = np.ones_like(ids)
        else:
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(cut)]
            ids = np.full((len(encoded), max(map(len, encoded))), self._pad, np.int64)
            mask = np.zeros_like(ids)
            for row, tokens in enumerate(encoded):
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
        vectors[list(rows)] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return len(rows)


def _session(model: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # a plan is kept for every shape seen, and here nearly every shape is new
    try:
        return ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
        )
    except Exception as error:  # onnxruntime's errors share no other base
        raise PhaseFailed(
            f"onnxruntime cannot load {model.name}: {error}; export the embedder again", phase="embed"
        ) from error


def _tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise PhaseFailed(f"{path.name} cannot be read: {error}; export the embedder again", phase="embed") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer
