"""Whether the parts of a finished data set share anything they must not: read from its files, as trainers will.

It does not trust the split: `training.dataset.build` calls it last, and a data set that leaks is refused.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.dataset.example import PARTS, Example, Part
from training.dataset.keys import is_unseen, query_key


class Leaks(NamedTuple):
    """How many queries, and how many pairs of query and item, are in more than one part; and how many training examples
    name an unseen item."""

    queries: int
    pairs: int
    unseen_items: int


class Footprint(NamedTuple):
    """What a part holds, as sorted 64-bit hashes without repeats."""

    queries: NDArray[np.uint64]
    pairs: NDArray[np.uint64]
    unseen_items: int


def footprint(examples: Iterable[Example], per_user: bool, unseen_ratio: float) -> Footprint:
    queries, pairs, unseen = array("Q"), array("Q"), 0
    for example in examples:
        key = query_key(example, per_user)
        queries.append(int.from_bytes(key[:8]))
        pair = key + example.item.encode("utf-8", "surrogatepass")
        pairs.append(int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest()))
        unseen += is_unseen(example.item, unseen_ratio)
    return Footprint(np.unique(np.array(queries, np.uint64)), np.unique(np.array(pairs, np.uint64)), unseen)


def find_leaks(parts: Mapping[Part, Footprint]) -> Leaks:
    """All of them 0 for a data set that may be used."""
    queries = [parts[part].queries for part in PARTS]
    pairs = [parts[part].pairs for part in PARTS]
    return Leaks(_repeated(queries), _repeated(pairs), parts["train"].unseen_items)


def _repeated(hashes: list[NDArray[np.uint64]]) -> int:
    together = np.concatenate(hashes)
    return len(together) - len(np.unique(together))
