"""Which of many short texts share character n-grams with a typed one: postings, built and read without Python loops.

Called by the rules index for words, for sounds and for whole names. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_GRAM = 4
_BITS = 16  # of a character; four of them fit the 64 bits of a gram


def _grams(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(grams, the text that each is of), once per text, by gram and then by text (no text holds a NUL). The start
    of a text counts as a character, since abbreviations keep it.
    """
    joined = "".join(f"^{text}" for text in texts)
    characters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64) & np.uint64(
        0xFFFF
    )
    of_text = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    grams, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    code = characters
    for size in range(2, MAX_GRAM + 1):
        code = (code[:-1] << np.uint64(_BITS)) | characters[size - 1 :]
        inside = of_text[: len(code)] == of_text[size - 1 :]
        order = np.argsort(code[inside], kind="stable")
        gram, owner = code[inside][order], of_text[: len(code)][inside][order]
        first = np.ones(len(gram), np.bool_)
        first[1:] = (gram[1:] != gram[:-1]) | (owner[1:] != owner[:-1])
        grams.append(gram[first])
        owners.append(owner[first])
    return np.concatenate(grams), np.concatenate(owners)


class GramIndex:
    """Postings of the 2- to 4-grams of `texts`."""

    def __init__(self, texts: Sequence[str]) -> None:
        grams, self._texts = _grams(texts)
        self._grams, first = np.unique(grams, return_index=True)
        self._starts = np.append(first, len(grams))
        self._norms = np.sqrt(np.maximum(np.bincount(self._texts, minlength=len(texts)), 1))

    def similar(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The texts that share n-grams with `text`, and the cosine of their sets of n-grams, 0..1."""
        wanted, _ = _grams([text])
        if not len(self._grams):
            return np.empty(0, np.int64), np.empty(0)
        places = np.minimum(np.searchsorted(self._grams, wanted), len(self._grams) - 1)
        known = places[self._grams[places] == wanted]
        spans = [self._texts[a:b] for a, b in zip(self._starts[known], self._starts[known + 1], strict=True)]
        if not spans:
            return np.empty(0, np.int64), np.empty(0)
        shared = np.bincount(np.concatenate(spans), minlength=len(self._norms))
        texts = np.flatnonzero(shared)
        return texts, shared[texts] / (self._norms[texts] * math.sqrt(len(wanted)))

    def nearest(self, text: str, count: int) -> NDArray[np.int64]:
        """At most `count` texts that share n-grams with `text`, in no order."""
        texts, alike = self.similar(text)
        return texts[np.argpartition(alike, -count)[-count:]] if len(texts) > count else texts
