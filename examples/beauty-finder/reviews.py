"""The files of Amazon Reviews 2023, as they are: `All_Beauty.jsonl` (reviews) and `meta_All_Beauty.jsonl` (products),
plain or as `.gz`. Read line by line; a line that cannot be used is counted and named, never fatal.

`made_up.py` writes the same format, `steps.py` reads it.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import orjson

REVIEWS = "All_Beauty.jsonl"
PRODUCTS = "meta_All_Beauty.jsonl"
REVIEW_KEYS = ("rating", "title", "text", "images", "asin", "parent_asin", "user_id", "timestamp", "helpful_vote",
               "verified_purchase")  # fmt: skip
PRODUCT_KEYS = ("main_category", "title", "average_rating", "rating_number", "features", "description", "price",
                "images", "videos", "store", "categories", "details", "parent_asin", "bought_together")  # fmt: skip
NAMED = 10
"""So many damaged lines are named; all are counted."""
PRICE = re.compile(r"\d+(?:\.\d+)?")


class NoData(Exception):
    """There are no files to read; the message says what to do."""


class Review(NamedTuple):
    """`line`, from 1, is its id: the files give it none. `timestamp_ms`: Unix time."""

    line: int
    item: str
    text: str
    title: str
    rating: float
    user: str
    timestamp_ms: int


class Product(NamedTuple):
    """`price` in dollars, None where the page had none."""

    id: str
    title: str
    features: tuple[str, ...]
    description: str
    store: str
    price: float | None
    average_rating: float | None


@dataclass(slots=True)
class Damage:
    """What could not be read: reason -> lines, and the first of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, reason: str) -> None:
        self.counts[reason] += 1
        if len(self.named) < NAMED:
            self.named.append(f"{path.name}, line {line}: {reason}")

    def __str__(self) -> str:
        return ", ".join(f"{count:,} x {reason}" for reason, count in self.counts.most_common()) or "none"


def raw_file(folder: Path, name: str) -> Path:
    """The plain file, else the packed one. Raises NoData."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise NoData(f"there is neither {name} nor {name}.gz in {folder}")


def lines_of(path: Path, damage: Damage) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line that holds one. Of a packed file that is cut off, what is there."""
    number = 0
    with path.open("rb") if path.suffix != ".gz" else cast(IO[bytes], gzip.open(path, "rb")) as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    raw = orjson.loads(line)
                except orjson.JSONDecodeError:
                    damage.add(path, number, "not JSON")
                    continue
                if isinstance(raw, dict):
                    yield number, raw
                else:
                    damage.add(path, number, "not an object")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            damage.add(path, number + 1, "the packed file is cut off or damaged from here on")


def read_reviews(path: Path, damage: Damage) -> Iterator[Review]:
    """In the order of the file."""
    for number, raw in lines_of(path, damage):
        item, text, time = raw.get("parent_asin") or raw.get("asin"), raw.get("text"), raw.get("timestamp")
        rating = raw.get("rating")
        if not isinstance(item, str) or not isinstance(text, str):
            damage.add(path, number, "no text or no parent_asin")
        elif isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < 1e14:
            damage.add(path, number, "no timestamp in ms")
        elif isinstance(rating, bool) or not isinstance(rating, int | float) or not 0 <= rating <= 5:
            damage.add(path, number, "no rating from 0 to 5")
        else:
            title, user = raw.get("title"), raw.get("user_id")
            yield Review(number, item, text, title if isinstance(title, str) else "", float(rating),
                         user if isinstance(user, str) else "", int(time))  # fmt: skip


def read_products(path: Path, damage: Damage) -> Iterator[Product]:
    """In the order of the file; of an id that comes twice, the first. A price may be a number or a text."""
    seen: set[str] = set()
    for number, raw in lines_of(path, damage):
        item, title = raw.get("parent_asin"), raw.get("title")
        if not isinstance(item, str) or not item or not isinstance(title, str):
            damage.add(path, number, "no parent_asin or no title")
        elif item in seen:
            damage.add(path, number, "a parent_asin that came before")
        else:
            seen.add(item)
            store = raw.get("store")
            yield Product(item, title, tuple(texts(raw.get("features"))), " ".join(texts(raw.get("description"))),
                          store if isinstance(store, str) else "", number_in(raw.get("price")),
                          number_in(raw.get("average_rating")))  # fmt: skip


def texts(value: Any) -> list[str]:
    """A list of texts, or one text, without blank ones; line breaks become blanks."""
    many = value if isinstance(value, list) else [value]
    return [" ".join(text.split()) for text in many if isinstance(text, str) and text.strip()]


def number_in(value: Any) -> float | None:
    if isinstance(value, str):
        found = PRICE.search(value.replace(",", ""))
        return float(found.group()) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) < 1e9 else None


def schema_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """Key -> type name, in order: what two files of one format have in common."""
    return {key: type(value).__name__ for key, value in raw.items()}
