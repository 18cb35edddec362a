"""Fits the features to the training examples, and encodes both parts into arrays that all workers read.

`trainer.prepare` calls it. Examples are read twice, in chunks, so that millions fit: what stays in memory is the
catalogue, the count of every value, and some 8 bytes for each number of an example; workers map the arrays.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.components.rank_features import (
    Band,
    FeatureEncoder,
    Features,
    FeatureSpec,
    Numeric,
    category_of,
    is_of_item,
    number_of,
    value_of_item,
    value_of_request,
)
from serving.schema import Item
from training.dataset.example import Example, read_examples
from training.errors import DatasetInvalid, TrainingRefused
from training.wide_deep.options import WideDeepOptions

CHUNK = 65_536
ARRAYS = ("codes", "numbers", "labels", "weights")


class Shop:
    """The catalogue snapshot: items and where each is."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.row_of = {item.id: row for row, item in enumerate(items)}

    @classmethod
    def read(cls, path: Path) -> Shop:
        """Raises DatasetInvalid that names the line."""
        items = []
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    raw = orjson.loads(line)
                    items.append(Item(raw["id"], raw["fields"], raw.get("attributes", {})))
                except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                    raise DatasetInvalid(f"{path.name}, line {number}: no item: {error!r}") from None
        return cls(items)

    def chunks(self, examples: Iterable[Example]) -> Iterator[tuple[list[Example], NDArray[np.int64]]]:
        """Examples and the rows of their items; those whose item is no longer in the catalogue are left out: nothing
        is known of it, and it cannot be shown again."""
        known = (example for example in examples if example.item in self.row_of)
        while chunk := list(itertools.islice(known, CHUNK)):
            yield chunk, np.array([self.row_of[example.item] for example in chunk], np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """Encoded examples: features of n rows, `labels` (n,) float32 0 or 1, `weights` (n,) float32, 1 on average over the
    training part."""

    features: Features
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in zip(ARRAYS, (*self.features, self.labels, self.weights), strict=True):
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Part:
        codes, numbers, labels, weights = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
        return cls(Features(codes, numbers), labels, weights)


@dataclass(slots=True)
class _Seen:
    """What the training part holds of each feature."""

    categories: dict[str, Counter[str]]
    numbers: dict[str, NDArray[np.float64]]


def fit(path: Path, shop: Shop, options: WideDeepOptions, start: FeatureSpec | None, seed: int) -> FeatureSpec:
    """Of the training examples in `path`. With `start`, its vocabularies grow and everything else stays as it is: known
    values keep their codes. Raises TrainingRefused for a feature that no example has, DatasetInvalid."""
    seen = _look(path, shop, options)
    _refuse_absent(seen, shop)
    known: Mapping[str, tuple[str, ...]] = start.vocabularies if start else {}
    grown = {name: _grow(known.get(name, ()), seen.categories[name], options) for name in options.categories}
    if start:
        _refuse_other_features(start, options)
        return replace(start, vocabularies={name: grown[name] for name in start.vocabularies})
    return FeatureSpec(
        grown,
        {name: Band(band.of, _edges(seen.numbers[band.of], band.count)) for name, band in options.bands.items()},
        {name: _scale(seen.numbers[name]) for name in options.numeric},
        tuple(options.embeddings),
        options.crosses,
        options.wide_buckets,
        seed,
    )


def encode(path: Path, shop: Shop, spec: FeatureSpec) -> Part:
    """The examples in `path`, in order; weights as they are."""
    encoder = FeatureEncoder(spec)
    of_items = encoder.items(shop.items)
    parts: list[Part] = []
    for chunk, rows in shop.chunks(read_examples(path)):
        asked = encoder.requests([e.user for e in chunk], [e.record for e in chunk])
        labels = np.array([e.label for e in chunk], np.float32)
        parts.append(Part(of_items.take(rows) | asked, labels, np.array([e.weight for e in chunk], np.float32)))
    if not parts:
        none = np.empty(0, np.float32)
        return Part(of_items.take(slice(0, 0)), none, none)
    columns = zip(*((*p.features, p.labels, p.weights) for p in parts), strict=True)
    codes, numbers, labels, weights = (np.concatenate(column) for column in columns)
    return Part(Features(codes, numbers), labels, weights)


def _look(path: Path, shop: Shop, options: WideDeepOptions) -> _Seen:
    numeric = tuple(dict.fromkeys([*options.numeric, *(band.of for band in options.bands.values())]))
    categories: dict[str, Counter[str]] = {name: Counter() for name in options.categories}
    asked: dict[str, list[NDArray[np.float64]]] = {name: [] for name in numeric if not is_of_item(name)}
    shown = np.zeros(len(shop.items), np.int64)
    for chunk, rows in shop.chunks(read_examples(path)):
        shown += np.bincount(rows, minlength=len(shown))
        for name, counts in categories.items():
            if not is_of_item(name):
                counts.update(category_of(value_of_request(e.user, e.record, name)) for e in chunk)
        for name, values in asked.items():
            values.append(np.array([number_of(value_of_request(e.user, e.record, name)) for e in chunk]))
    if not shown.any():
        raise TrainingRefused("no training example is about an item of the catalogue: there is nothing to learn from")
    for name in filter(is_of_item, categories):
        for item, count in zip(shop.items, shown.tolist(), strict=True):
            categories[name][category_of(value_of_item(item, name))] += count
    for counts in categories.values():
        del counts[""]
    numbers = {name: np.concatenate(values) for name, values in asked.items()}
    for name in filter(is_of_item, numeric):
        numbers[name] = np.repeat([number_of(value_of_item(item, name)) for item in shop.items], shown)
    return _Seen(categories, {name: values[~np.isnan(values)] for name, values in numbers.items()})


def _refuse_absent(seen: _Seen, shop: Shop) -> None:
    absent = [n for n, c in seen.categories.items() if not c.total()]
    absent += [n for n, values in seen.numbers.items() if not len(values)]
    if absent:
        keys = sorted({key for item in shop.items[:1000] for key in (*item.attributes, *item.fields)})
        raise TrainingRefused(
            f"train.options name the features {absent}, but no training example has a usable value of them; items have "
            f"{keys}, and a number has to be a JSON number"
        )


def _grow(known: tuple[str, ...], counts: Counter[str], options: WideDeepOptions) -> tuple[str, ...]:
    have = set(known)
    new = sorted((-n, value) for value, n in counts.items() if n >= options.min_count and value not in have)
    return (*known, *(value for _, value in new[: max(0, options.max_values - len(known))]))


def _refuse_other_features(start: FeatureSpec, options: WideDeepOptions) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "embeddings": (start.embedded, tuple(options.embeddings)),
        "numeric": (tuple(start.numeric), options.numeric),
        "bands": ({n: b.of for n, b in start.bands.items()}, {n: b.of for n, b in options.bands.items()}),
        "crosses": (start.crosses, options.crosses),
        "wide_buckets": (start.buckets, options.wide_buckets),
    }
    for option, (before, now) in pairs.items():
        if before != now:
            raise TrainingRefused(
                f"train.options.{option} is {now}, but the ranker that serves was trained with {before}: keep it, or "
                "train from nothing with `start: base`"
            )


def _edges(values: NDArray[np.float64], count: int) -> tuple[float, ...]:
    return tuple(float(x) for x in np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1])))


def _scale(values: NDArray[np.float64]) -> Numeric:
    return Numeric(float(values.mean()), float(values.std()) or 1.0)
