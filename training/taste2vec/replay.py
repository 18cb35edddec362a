"""The replay buffer: at most 10,000 of all examples that were learnt from, so that new feedback is learnt beside old.

A weighted sample without replacement: each example gets the key -ln(u) / weight, where u in 0..1 is a hash of it, and
those with the smallest keys are kept (Efraimidis & Spirakis 2006, IPL 97). A plain reservoir draws u at random; the
hash makes the buffer a function of what went in, whatever the order and however often. So it is the same after a kill
and a second try, it can be lost and is made again from the store by the next run, and an example of a person who was
forgotten is not in it. It lies in one file, replaced as a whole. It never enters a release: releases are immutable.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from pathlib import Path

import orjson

from registry.files import replacing
from training.dataset.example import Example, read_examples, write_examples


class ReplayBuffer:
    """Bound to a file. Raises DatasetInvalid for a file that it did not write, OSError when the disk is full: what was
    in the file before is then there still."""

    def __init__(self, file: Path, size: int = 10_000, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: a buffer holds at least 1 example")
        self._file = file
        self._size = size
        self._seed = seed
        self._examples: tuple[Example, ...] = tuple(read_examples(file)) if file.is_file() else ()

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[Example]:
        """By key, the surest to stay first."""
        return iter(self._examples)

    def add(self, examples: Iterable[Example]) -> None:
        """Durable when it returns. What is in the buffer already is not added twice."""
        known = {self._identity(example): example for example in (*self._examples, *examples)}
        best = nsmallest(self._size, ((self._key(identity, e), identity) for identity, e in known.items()))
        kept = tuple(known[identity] for _, identity in best)
        if kept != self._examples:
            self._replace(kept)

    def _replace(self, kept: tuple[Example, ...]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._file, durable=True) as aside:
            write_examples(aside, kept)
        self._examples = kept

    @staticmethod
    def _identity(example: Example) -> bytes:
        return hashlib.sha256(orjson.dumps(example, option=orjson.OPT_SORT_KEYS)).digest()

    def _key(self, identity: bytes, example: Example) -> float:
        drawn = hashlib.sha256(self._seed.to_bytes(8) + identity).digest()
        u = (int.from_bytes(drawn[:7]) + 1) / (1 << 56)
        return -math.log(u) / example.weight
