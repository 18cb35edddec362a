"""The steps between the raw files and what Palate reads: time split, item texts, training pairs, evaluation cases.

`beauty.py` calls them. Each streams the reviews; what it keeps is bounded by the number of items, of training keywords
(8 bytes each) or by the limit that was asked for.

The split is by time: of all reviews the first 80 % train, the next 10 % validate, the last 10 % test. Everything that
is learned or searched (keywords in item texts, pairs, popularity) comes from the first part alone.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from forms import FIELDS
from reviews import PRODUCTS, REVIEWS, Damage, NoData, Product, Review, raw_file, read_products, read_reviews

from training.batch.file import digest_of, read_lines

Part = Literal["train", "valid", "test"]
Query = Literal["review_text", "keywords", "both"]
TRAIN_RATIO, VALID_RATIO = 0.8, 0.1
KEYWORDS_PER_ITEM, FEATURES_PER_ITEM = 12, 8
LEAST_WORDS = 4
"""A review of fewer words asks for nothing in particular: it is neither trained on nor asked."""
QUERY_CHARACTERS = 500
Tell = Callable[[int], None]
Asking = tuple[Review, dict[str, str]]
"""A review and its queries by kind."""


@dataclass(frozen=True, slots=True)
class Data:
    """The folder of everything: `raw/` with the files, beside it what was made of them."""

    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def keywords(self) -> Path:
        return self.folder / "keywords.jsonl"

    @property
    def summaries(self) -> Path:
        return self.folder / "summaries.jsonl"

    def reviews(self, damage: Damage | None = None, tell: Tell | None = None) -> Iterator[Review]:
        yield from _told(read_reviews(raw_file(self.raw, REVIEWS), damage or Damage()), tell)

    def products(self, damage: Damage | None = None, tell: Tell | None = None) -> Iterator[Product]:
        yield from _told(read_products(raw_file(self.raw, PRODUCTS), damage or Damage()), tell)


class Split(NamedTuple):
    """Train is before `valid_ms`, valid from there on, test from `test_ms` on: reviews of one moment stay together."""

    valid_ms: int
    test_ms: int

    def part(self, timestamp_ms: int) -> Part:
        return "train" if timestamp_ms < self.valid_ms else "valid" if timestamp_ms < self.test_ms else "test"


def review_text(review: Review) -> str:
    """What a review says, title first unless its text begins with it: the text that keywords are extracted from."""
    title = review.title.strip()
    if not title or review.text.startswith(title.rstrip(". ")):
        return review.text
    return f"{title.rstrip('.')}. {review.text}"


def page_text(product: Product) -> str:
    return product.description


def find_split(data: Data, tell: Tell | None = None) -> Split:
    """Read once and kept in `split.json` for as long as the file is the same. Raises NoData without reviews."""
    state, file = raw_file(data.raw, REVIEWS).stat(), data.folder / "split.json"
    key = f"{state.st_size} {state.st_mtime_ns} {TRAIN_RATIO} {VALID_RATIO}"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["of"] == key:
            return Split(kept["valid_ms"], kept["test_ms"])
    except (OSError, ValueError, KeyError):
        pass  # not made yet
    times = np.sort(np.frombuffer(array("q", (review.timestamp_ms for review in data.reviews(None, tell))), np.int64))
    if not len(times):
        raise NoData(f"{data.raw} holds no review that can be read")
    split = Split(int(times[int(len(times) * TRAIN_RATIO)]), int(times[int(len(times) * (TRAIN_RATIO + VALID_RATIO))]))
    file.write_text(json.dumps({"of": key, **split._asdict()}), encoding="utf-8")
    return split


def with_keywords(data: Data, tell: Tell | None = None) -> Iterator[tuple[Review, list[str]]]:
    """Every review with its keywords (who, when, why in turn). Raises NoData where the file of keywords does not cover
    the reviews."""
    made = read_lines(data.keywords)
    for review in data.reviews(None, tell):
        found = next(made, None)
        if found is None or found["id"] != str(review.line) or found["of"] != digest_of(review_text(review)):
            raise NoData(f"{data.keywords} ends before line {review.line} or is of other reviews: run `extract` again")
        yield review, [word for field in FIELDS for word in found["values"][field]]


# ---- Item texts


class Told(NamedTuple):
    """What the reviews before the split tell of an item: how many there are, and the keywords most of them have."""

    reviews: int
    keywords: tuple[str, ...]


def told_of_items(data: Data, items: Mapping[str, int], tell: Tell | None = None) -> list[Told]:
    """`items`: id -> place, from 0; the result is in that order. Only from reviews before the split."""
    split, words = find_split(data), dict[str, int]()
    pairs, reviews = array("q"), np.zeros(len(items), np.int64)
    for review, keywords in with_keywords(data, tell):
        place = items.get(review.item)
        if place is not None and split.part(review.timestamp_ms) == "train":
            reviews[place] += 1
            pairs.extend(place << 32 | words.setdefault(word, len(words)) for word in dict.fromkeys(keywords))
    names = list(words)
    found: list[list[tuple[int, str]]] = [[] for _ in items]
    for pair, count in zip(*map(np.ndarray.tolist, np.unique(np.frombuffer(pairs, np.int64), return_counts=True)),
                           strict=True):  # fmt: skip
        found[pair >> 32].append((-count, names[pair & 0xFFFFFFFF]))
    return [Told(int(n), tuple(word for _, word in sorted(some)[:KEYWORDS_PER_ITEM]))
            for n, some in zip(reviews, found, strict=True)]  # fmt: skip


def item_text(title: str, keywords: str, summary: str, features: str) -> str:
    """The text that is embedded; a section without content is left out."""
    sections = {"Title": title, "Review Keywords": keywords, "Description Summary": summary, "Features": features}
    return " ".join(f"[{name}] {value}" for name, value in sections.items() if value)


def catalogue(data: Data, tell: Callable[[str], Tell]) -> Iterator[dict[str, Any]]:
    """The items, in the order of the metadata: `{"id", "fields", "attributes"}`. `tell` gives each pass a progress."""
    items = {product.id: place for place, product in enumerate(data.products(None, tell("products")))}
    told = told_of_items(data, items, tell("keywords of the reviews before the split"))
    summaries = read_lines(data.summaries)
    for product, said, made in zip(data.products(None, tell("items")), told, summaries, strict=True):
        if made["id"] != product.id or made["of"] != digest_of(page_text(product)):
            raise NoData(f"{data.summaries} is of other products at {product.id}: run `extract` again")
        fields = {
            "title": " ".join(product.title.split()), "keywords": ", ".join(said.keywords),
            "summary": made["values"]["summary"], "features": ", ".join(product.features[:FEATURES_PER_ITEM]),
        }  # fmt: skip
        fields["text"] = item_text(**fields)
        attributes = {"store": product.store or None, "price": product.price, "average_rating": product.average_rating}
        yield {
            "id": product.id,
            "fields": {**fields, "store": product.store, "reviews": said.reviews},
            "attributes": {name: value for name, value in attributes.items() if value is not None},
        }


# ---- Pairs and cases


def queries(review: Review, keywords: list[str], kind: Query) -> dict[str, str]:
    """What a review asks for, by kind of query; a kind that it says too little for is left out."""
    text, asked = " ".join(review_text(review).split())[:QUERY_CHARACTERS], {}
    if kind != "keywords" and len(text.split()) >= LEAST_WORDS:
        asked["review_text"] = text
    if kind != "review_text" and keywords:
        asked["keywords"] = ", ".join(keywords)
    return asked


def pairs(data: Data, kind: Query, limit: int | None, tell: Tell | None = None) -> Iterator[dict[str, Any]]:
    """Training examples, as `training.dataset.example` has them, of reviews before the split alone."""
    split, known = find_split(data), {product.id for product in data.products()}
    some = ((review, queries(review, keywords, kind)) for review, keywords in with_keywords(data, tell)
            if split.part(review.timestamp_ms) == "train" and review.item in known)  # fmt: skip
    for review, asked in _sample(some, limit):
        for name, query in asked.items():
            yield {"query": query, "item": review.item, "label": 1, "at_s": review.timestamp_ms / 1000, "slice": name}


def cases(data: Data, part: Part, kind: Query, limit: int | None, tell: Tell | None = None) -> Iterator[dict[str, Any]]:
    """Evaluation cases of one part; the slices tell items that training saw from those it did not. A query that several
    reviews ask with the same words accepts the items of each of them."""
    split, known, seen = find_split(data), {product.id for product in data.products()}, set[str]()

    def of_part() -> Iterator[Asking]:
        for review, keywords in with_keywords(data, tell):
            where = split.part(review.timestamp_ms)
            if where == "train":
                seen.add(review.item)
            if where == part and review.item in known:
                yield review, queries(review, keywords, kind)

    chosen = list(_sample(of_part(), limit))
    accept: dict[str, dict[str, None]] = {}
    for review, asked in chosen:
        for query in asked.values():
            accept.setdefault(query, {})[review.item] = None
    for query, items in accept.items():
        yield {"query": query, "accept": list(items), "slice": "seen items" if seen & items.keys() else "new items"}


def _sample(some: Iterable[tuple[Review, dict[str, str]]], limit: int | None) -> Iterator[Asking]:
    """Those that ask something; of too many, `limit` of them by the hash of their line, in the order of the file."""
    asking = (one for one in some if one[1])
    if limit is None:
        yield from asking
        return
    chosen = heapq.nsmallest(limit, asking, key=lambda one: hashlib.blake2b(str(one[0].line).encode()).digest())
    yield from sorted(chosen, key=lambda one: one[0].line)


def part_counts(data: Data, damage: Damage, tell: Tell | None = None) -> Counter[str]:
    """What there is: reviews by part, items, users."""
    split, users, counts = find_split(data), set[int](), Counter[str]()
    for review in data.reviews(damage, tell):
        counts[split.part(review.timestamp_ms)] += 1
        users.add(hash(review.user))
    counts["users"] = len(users)
    counts["items"] = sum(1 for _ in data.products(damage))
    return counts


def _told(some: Iterator[Any], tell: Tell | None) -> Iterator[Any]:
    for done, one in enumerate(some, 1):
        if tell and done % 2000 == 0:
            tell(done)
        yield one
