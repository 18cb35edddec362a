"""When two examples ask the same: the key of a query, which decides what is a duplicate and what would leak.

Called by every step of `training.dataset`. Pure.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from typing import Any

import orjson

from training.dataset.example import Example

KEY_BYTES = 16


def normalise(text: str) -> str:
    """NFKC, without case, every run of white space as one space: texts that only differ in these are the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def query_key(example: Example, per_user: bool) -> bytes:
    """16 bytes: one query, whatever its record, and with `per_user` of one person. A query without text is its
    record."""
    text = normalise(example.query)
    asked = [example.user if per_user else "", text, None if text else example.record]
    return hashlib.blake2b(canonical(asked), digest_size=KEY_BYTES).digest()


def pair_key(example: Example) -> tuple[str, bytes]:
    """Within one query: the item, and the record it was right or wrong for."""
    return example.item, canonical(example.record) if example.record else b""


def canonical(value: Mapping[str, Any] | list[Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def share_of(data: bytes, key: bytes = b"") -> float:
    """A number in [0, 1), uniform over inputs and the same in every run."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest()[:7]) / 2**56


def is_unseen(item: str, ratio: float) -> bool:
    """Whether an item is kept out of training: by its id alone, so that a later data set keeps out the same ones."""
    return share_of(item.encode("utf-8", "surrogatepass")) < ratio
