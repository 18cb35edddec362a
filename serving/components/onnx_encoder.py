"""Runs the ONNX graph of an embedder: texts in, unit vectors out. tokenizers, onnxruntime and numpy, nothing heavier.

`serving.retrieve.onnx_embedder` serves with it, `training.export` checks and gates with it, so what is measured is
what is served.

Speed: texts are sorted by their number of tokens and cut into groups, each padded to its own longest text, and each
group runs on one thread, `threads` groups at a time. That beats ONNX Runtime's own threads, which wait for each other
at every node; and a group of 16 keeps its activations inside the processor's second-level cache, which 64 do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serving.errors import PhaseFailed

BATCH = 16
"""Most texts in one run of the graph."""

WINDOW = 1024
"""Texts that are tokenised, and so sorted, together."""

RUN_TOKENS = 14
"""What one run of the graph costs beside its tokens, in tokens (measured: 0.7 ms against 0.05 ms a token)."""

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
        self._session = open_session(model)
        self._tokenizer = _tokenizer(tokenizer, max_tokens)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="embed") if threads > 1 else None
        shape = self._session.get_outputs()[0].shape
        self.dimension = int(shape[-1])

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """(len(texts), dimension) float32 unit rows in the order given. Memory: the result and a window of tokens."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), WINDOW):
            tokens = self._tokenise(texts[start : start + WINDOW])
            done = start
            for rows in self._run_groups(tokens, vectors[start : start + WINDOW]):
                done += rows
                if progress:
                    progress(done, len(texts))
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `encode` reads of them all, special ones included."""
        return sum(
            len(ids) for start in range(0, len(texts), WINDOW) for ids in self._tokenise(texts[start : start + WINDOW])
        )

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        cut = [text[: self._max_characters] for text in texts]
        if len(cut) == 1:
            return [self._tokenizer.encode(cut[0]).ids]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(cut)]

    def _run_groups(self, tokens: list[list[int]], vectors: NDArray[np.float32]) -> Iterator[int]:
        """Embed a window; yields the rows of each group that is done."""
        # Few texts still use every core: their latency is somebody's wait.
        most = min(BATCH, max(BATCH // 4, -(-len(tokens) // self._threads)))
        groups = group_by_length([len(ids) for ids in tokens], most)
        if self._pool is None or len(groups) == 1:
            for rows in groups:
                yield self._run(tokens, rows, vectors)
            return
        for future in [self._pool.submit(self._run, tokens, rows, vectors) for rows in groups]:
            yield future.result()

    def _run(self, tokens: list[list[int]], rows: Sequence[int], vectors: NDArray[np.float32]) -> int:
        longest = max(len(tokens[row]) for row in rows)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for line, row in enumerate(rows):
            ids[line, : len(tokens[row])] = tokens[row]
            mask[line, : len(tokens[row])] = 1
        vectors[list(rows)] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return len(rows)


def group_by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in groups of at most `most`, longest first, so that padding costs less than a group of its own would.

    Padding is computed like any token. A new group begins when the tokens it would save exceed RUN_TOKENS.
    """
    groups: list[list[int]] = []
    longest = wasted = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        wasted += longest - lengths[index]
        if not groups or len(groups[-1]) == most or wasted > RUN_TOKENS:
            groups.append([])
            longest, wasted = lengths[index], 0
        groups[-1].append(index)
    return groups


def open_session(model: Path) -> ort.InferenceSession:
    """Of one thread, on the CPU. Raises PhaseFailed."""
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
