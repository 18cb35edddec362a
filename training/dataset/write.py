"""The last pass: examples into the files of their parts, and mined negatives beside those of the training part.

`training.dataset.build` calls it with queries in their final order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from training.dataset.example import PARTS, Example
from training.dataset.keys import is_unseen
from training.dataset.mining import MiningQuery
from training.dataset.request import DatasetRequest
from training.dataset.split import TRAIN
from training.dataset.weigh import negative_weight

QUERIES_PER_MINING = 256


class Decided(NamedTuple):
    """A query's part, as its position in PARTS, and the examples it keeps."""

    part: int
    examples: Sequence[Example]


class PartFiles:
    """The three files of a data set, open. `fingerprint` is over all bytes written so far, part by part."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._stack = ExitStack()
        self._files: list[BinaryIO] = []
        self._digests = [hashlib.sha256() for _ in PARTS]
        for part in PARTS:
            self._files.append(self._stack.enter_context((folder / f"{part}.jsonl").open("wb")))

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, part: int, example: Example) -> None:
        line = orjson.dumps(example, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        self._files[part].write(line)
        self._digests[part].update(line)

    def fingerprint(self) -> str:
        """SHA-256 in hex over the digests of the parts."""
        return hashlib.sha256("".join(d.hexdigest() for d in self._digests).encode()).hexdigest()


class Writer:
    """`unseen` gathers the items that are kept out of training and are in another part."""

    def __init__(self, request: DatasetRequest, counts: Counter[str], files: PartFiles) -> None:
        self.unseen: set[str] = set()
        self._request = request
        self._counts = counts
        self._files = files
        self._catalogue = frozenset(request.catalogue)
        self._mines = request.miner is not None and request.data.mined > 0

    def write(self, decided: Iterable[Decided]) -> None:
        waiting: list[Decided] = []
        for one in decided:
            waiting.append(one)
            if len(waiting) == QUERIES_PER_MINING:
                self._write(waiting)
                waiting = []
        self._write(waiting)

    def _write(self, queries: Sequence[Decided]) -> None:
        mined = self._mine(queries)
        for number, (part, examples) in enumerate(queries):
            for example in (*examples, *mined.get(number, ())):
                self._files.add(part, example)
                self._counts[PARTS[part]] += 1
                self._counts[f"{PARTS[part]}_positives"] += example.label
                if part != TRAIN and is_unseen(example.item, self._request.data.unseen_items_ratio):
                    self.unseen.add(example.item)

    def _mine(self, queries: Sequence[Decided]) -> dict[int, list[Example]]:
        """Position in `queries` -> the negatives mined for it."""
        miner, data = self._request.miner, self._request.data
        if miner is None or not self._mines:
            return {}
        asked: dict[int, Example] = {}
        for number, (part, examples) in enumerate(queries):
            first = next((one for one in examples if one.label), None)
            if part == TRAIN and first is not None:
                asked[number] = first
        right = {number: frozenset(e.item for e in queries[number].examples if e.label) for number in asked}
        found = miner.mine(
            [MiningQuery(one.query, right[number], one.record) for number, one in asked.items()], data.mined
        )
        mined: dict[int, list[Example]] = {}
        for (number, base), wrong in zip(asked.items(), found, strict=True):
            known = {example.item for example in queries[number].examples}
            mined[number] = [
                Example(base.query, item, 0, negative_weight(score, data), base.at_s, base.user, score=score,
                        event="mined", slice=base.slice, record=base.record)
                for item, score in wrong[: data.mined]
                if item not in known and item in self._catalogue and not is_unseen(item, data.unseen_items_ratio)
            ]  # fmt: skip
            self._counts["mined"] += len(mined[number])
        return mined
