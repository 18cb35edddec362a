"""What a ranker reads of a request and of an item: codes, numbers and hashed crosses, as arrays.

Training fits a `FeatureSpec` and encodes its examples with it (`training.wide_deep`), serving encodes requests and
candidates (`serving.components.ranker`): one implementation, so that both mean the same. numpy alone.

A feature is named by where it stands: `user`, `item` (the ids), `record.KEY` (the structured part of a query),
`item.KEY` (an attribute of the item, or else a field), or the name of a band. Code 0 of every categorical feature
stands for what is missing or was not seen in training.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.content import digest_json
from serving.schema import Item

UNKNOWN = 0
CLIP = 5.0
"""Standardised numbers are cut off here: one absurd price must not decide a ranking."""

Codes = NDArray[np.int32]
Numbers = NDArray[np.float32]


class Features(NamedTuple):
    """Encoded rows of one side, or of both. `codes`: (n, categories) int32; `numbers`: (n, 2 * numerics) float32, the
    standardised values and then 1 where one is missing. Each side leaves the other's columns at 0, so both are joined
    by adding."""

    codes: Codes
    numbers: Numbers

    def take(self, rows: NDArray[Any] | slice) -> Features:
        return Features(self.codes[rows], self.numbers[rows])

    def __or__(self, other: Features) -> Features:
        """Both sides of the same rows; one row goes with any number of the other's."""
        return Features(self.codes + other.codes, self.numbers + other.numbers)


@dataclass(frozen=True, slots=True)
class Numeric:
    """A number, standardised by what training saw of it."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Band:
    """A number as a category: code 1 up to the first edge, 2 up to the second, ...; `edges` rise."""

    of: str
    edges: tuple[float, ...]


@dataclass(frozen=True)
class FeatureSpec:
    """What the inputs of a ranker are. `vocabularies`: categorical feature -> its values, code 1 first. `embedded`:
    the categories the deep part embeds, in order. `crosses` hash to `buckets` weights of the wide part."""

    vocabularies: Mapping[str, tuple[str, ...]]
    bands: Mapping[str, Band]
    numeric: Mapping[str, Numeric]
    embedded: tuple[str, ...]
    crosses: tuple[tuple[str, ...], ...]
    buckets: int
    seed: int

    @property
    def categories(self) -> tuple[str, ...]:
        """The columns of codes."""
        return (*self.vocabularies, *self.bands)

    def rows(self, name: str) -> int:
        """Codes of a categorical feature, with that of the unknown."""
        return len(self.bands[name].edges) + 2 if name in self.bands else len(self.vocabularies[name]) + 1

    def as_json(self) -> dict[str, Any]:
        # Lists of pairs where the order is that of columns: JSON objects are written with sorted keys.
        return {
            "vocabularies": [[name, list(values)] for name, values in self.vocabularies.items()],
            "bands": [[name, asdict(band)] for name, band in self.bands.items()],
            "numeric": [[name, asdict(number)] for name, number in self.numeric.items()],
            "embedded": list(self.embedded),
            "crosses": [list(cross) for cross in self.crosses],
            "buckets": self.buckets,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FeatureSpec:
        """Raises KeyError, TypeError or ValueError for what `as_json` did not write."""
        return cls(
            {name: tuple(values) for name, values in raw["vocabularies"]},
            {name: Band(band["of"], tuple(band["edges"])) for name, band in raw["bands"]},
            {name: Numeric(**number) for name, number in raw["numeric"]},
            tuple(raw["embedded"]),
            tuple(tuple(cross) for cross in raw["crosses"]),
            int(raw["buckets"]),
            int(raw["seed"]),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex over all that decides what an input means; weights do not enter."""
        return digest_json({"features": self.as_json(), "clip": CLIP, "hash": "splitmix64"})


def is_of_item(name: str) -> bool:
    return name == "item" or name.startswith("item.")


def category_of(value: Any) -> str:
    """The text a vocabulary knows a value by; "" for what is missing. 3 and 3.0 are one value: the catalogue gives
    whole numbers back as ints."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def number_of(value: Any) -> float:
    """A finite number, true as 1; NaN for what is none."""
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return math.nan
        return number if math.isfinite(number) else math.nan
    return math.nan


def value_of_item(item: Item, name: str) -> Any:
    if name == "item":
        return item.id
    key = name.removeprefix("item.")
    value = item.attributes.get(key)
    return item.fields.get(key) if value is None else value


def value_of_request(user: str, record: Mapping[str, Any], name: str) -> Any:
    return user if name == "user" else record.get(name.removeprefix("record."))


class FeatureEncoder:
    """Encodes both sides by a `FeatureSpec`. Immutable: any thread may call it."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._codes = {n: {v: i for i, v in enumerate(values, 1)} for n, values in spec.vocabularies.items()}
        self._column = {name: i for i, name in enumerate(spec.categories)}
        self._embedded = [self._column[name] for name in spec.embedded]
        self._crosses = [[self._column[name] for name in cross] for cross in spec.crosses]
        self._seeds = [_mix(np.array([spec.seed * 1_000_003 + i], np.uint64))[0] for i in range(len(self._crosses))]

    def items(self, items: Sequence[Item]) -> Features:
        """Of `items`; the columns of the request are 0."""
        return self._encode(True, len(items), lambda name: [value_of_item(item, name) for item in items])

    def requests(self, users: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Features:
        """Of as many requests; `user` is the pseudonym that training knows, "" for nobody."""
        both = list(zip(users, records, strict=True))
        return self._encode(False, len(both), lambda name: [value_of_request(u, r, name) for u, r in both])

    def _encode(self, items: bool, n: int, values: Callable[[str], list[Any]]) -> Features:
        spec = self.spec
        codes = np.zeros((n, len(spec.categories)), np.int32)
        numbers = np.zeros((n, 2 * len(spec.numeric)), np.float32)
        for name, known in self._codes.items():
            if is_of_item(name) == items:
                codes[:, self._column[name]] = [known.get(category_of(v), UNKNOWN) for v in values(name)]
        for name, band in spec.bands.items():
            if is_of_item(band.of) == items:
                codes[:, self._column[name]] = [_band(band.edges, number_of(v)) for v in values(band.of)]
        for i, (name, scale) in enumerate(spec.numeric.items()):
            if is_of_item(name) == items:
                raw = np.array([number_of(v) for v in values(name)], np.float64)
                missing = np.isnan(raw)
                scaled = np.clip((raw - scale.mean) / scale.deviation, -CLIP, CLIP)
                numbers[:, i] = np.where(missing, 0.0, scaled)
                numbers[:, len(spec.numeric) + i] = missing
        return Features(codes, numbers)

    def embedded(self, codes: Codes) -> NDArray[np.int64]:
        """(n, embedded): rows of the embedding tables."""
        return codes[:, self._embedded].astype(np.int64)

    def wide(self, codes: Codes) -> NDArray[np.int64]:
        """(n, crosses): rows of the wide part's weights. Codes are hashed, not values: an unknown user crossed with a
        known category is one feature, which training learns from the ids it hides."""
        rows = np.empty((len(codes), len(self._crosses)), np.int64)
        with np.errstate(over="ignore"):
            wide = codes.astype(np.uint64)
            for i, (columns, seed) in enumerate(zip(self._crosses, self._seeds, strict=True)):
                hashed = seed
                for column in columns:
                    hashed = _mix(hashed ^ wide[:, column])
                rows[:, i] = hashed % np.uint64(self.spec.buckets)
        return rows


def _band(edges: tuple[float, ...], value: float) -> int:
    return UNKNOWN if math.isnan(value) else bisect_right(edges, value) + 1


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input reaches every bit out."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
