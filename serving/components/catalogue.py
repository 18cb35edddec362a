"""The catalogue component: an immutable snapshot of an app's items in columns, and a live view that overlays changes.

Every other component of a release counts in the rows of this snapshot. `serving.items.Follower` applies changes to
the live view; the sources only ever see rows and masks.

Files: `ids.txt` (one id a line), `documents.bin` (the JSON of each item's fields, end to end), `offsets.npy`
((n + 1,) int64 into documents.bin), `attributes.json` (kinds and keyword vocabularies), `column-<i>.npy`, the column of
the i-th attribute by name: an attribute may have a name that no file can have.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.errors import BadRequest
from serving.schema import AppSpec, Filters, Item
from serving.schema.app_spec import AttributeKind

RANGE_OPERATORS = ("gt", "gte", "lt", "lte")


class Columns:
    """Attribute columns that grow by appending rows: keyword as codes of a vocabulary, number as float64 (NaN where
    missing), bool as int8 (-1 where missing). Filters are evaluated over whole columns at once."""

    def __init__(self, kinds: Mapping[str, AttributeKind]) -> None:
        self.kinds = dict(kinds)
        self.vocabulary: dict[str, dict[str, int]] = {n: {} for n, k in kinds.items() if k == "keyword"}
        self.arrays: dict[str, NDArray[Any]] = {
            n: np.empty(0, {"keyword": np.int32, "number": np.float64, "bool": np.int8}[k]) for n, k in kinds.items()
        }

    def encode(self, items: Sequence[Item]) -> dict[str, NDArray[Any]]:
        """Per attribute the column of `items`. Raises BadRequest for a value of the wrong kind."""
        self.check(items)
        return {name: self._encode_one(name, [i.attributes.get(name) for i in items]) for name in self.kinds}

    def check(self, items: Iterable[Item]) -> None:
        """Raises BadRequest for a value of the wrong kind."""
        for item in items:
            for name, kind in self.kinds.items():
                _check_value(item, name, kind)

    def _encode_one(self, name: str, values: Sequence[Any]) -> NDArray[Any]:
        kind = self.kinds[name]
        if kind == "number":
            return np.array([np.nan if v is None else float(v) for v in values], np.float64)
        if kind == "bool":
            return np.array([-1 if v is None else int(bool(v)) for v in values], np.int8)
        codes = self.vocabulary[name]
        return np.array([-1 if v is None else codes.setdefault(str(v), len(codes)) for v in values], np.int32)

    def attributes(self, row: int) -> dict[str, Any]:
        """The values of a row; those that are missing are left out. A whole number comes back as an int."""
        values: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            stored = self.arrays[name][row]
            if kind == "number" and not np.isnan(stored):
                values[name] = int(stored) if float(stored).is_integer() else float(stored)
            elif kind == "bool" and stored >= 0:
                values[name] = bool(stored)
            elif kind == "keyword" and stored >= 0:
                values[name] = next(word for word, code in self.vocabulary[name].items() if code == stored)
        return values

    def mask(self, filters: Filters, rows: int) -> NDArray[np.bool_]:
        """(rows,) True where a row passes every filter. Raises BadRequest that names the filter."""
        passed = np.ones(rows, np.bool_)
        for name, wanted in filters.items():
            if name not in self.kinds:
                raise BadRequest(
                    f"there is no attribute {name!r} to filter on; there are {sorted(self.kinds)}",
                    field=f"filters.{name}",
                )
            passed &= self._passes(name, wanted, self.arrays[name][:rows])
        return passed

    def _passes(self, name: str, wanted: Any, column: NDArray[Any]) -> NDArray[np.bool_]:
        field = f"filters.{name}"
        if isinstance(wanted, Mapping):
            return self._in_range(name, wanted, column)
        values = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
        kind = self.kinds[name]
        codes: list[Any]
        if kind == "keyword":
            if not all(isinstance(v, str) for v in values):
                raise BadRequest(f"{name!r} is a keyword: filter on text, not {wanted!r}", field=field)
            codes = [self.vocabulary[name].get(v, -2) for v in values]
        elif kind == "bool":
            if not all(isinstance(v, bool) for v in values):
                raise BadRequest(f"{name!r} is a bool: filter on true or false, not {wanted!r}", field=field)
            codes = [int(v) for v in values]
        else:
            codes = [_number(v) for v in values]
            if None in codes:
                raise BadRequest(f"{name!r} is a number: filter on a number or a range, not {wanted!r}", field=field)
        return np.asarray(column == codes[0] if len(codes) == 1 else np.isin(column, codes), np.bool_)

    def _in_range(self, name: str, wanted: Mapping[str, Any], column: NDArray[Any]) -> NDArray[np.bool_]:
        field = f"filters.{name}"
        if self.kinds[name] != "number":
            raise BadRequest(f"{name!r} is a {self.kinds[name]}: ranges are for numbers", field=field)
        passed: NDArray[np.bool_] = ~np.isnan(column)
        for operator, bound in wanted.items():
            if operator not in RANGE_OPERATORS:
                raise BadRequest(f"unknown operator {operator!r}; there are {list(RANGE_OPERATORS)}", field=field)
            number = _number(bound)
            if number is None:
                raise BadRequest(f"{operator} wants a number, not {bound!r}", field=f"{field}.{operator}")
            compare = {"gt": np.greater, "gte": np.greater_equal, "lt": np.less, "lte": np.less_equal}[operator]
            passed &= compare(column, number)
        return passed


def check_item(item: Item, spec: AppSpec) -> None:
    """Raises BadRequest when an item cannot be searched or filtered on as app.yaml says."""
    validate_attributes(item, spec.items.attributes)
    if "\n" in item.id:
        raise BadRequest(f"item id {item.id!r} holds a line break", field="id")
    if not any(str(item.fields.get(name) or "").strip() for name in spec.items.text):
        raise BadRequest(
            f"item {item.id!r} has no text: at least one of the fields {list(spec.items.text)} must not be empty",
            field="fields",
        )


def validate_attributes(item: Item, kinds: Mapping[str, AttributeKind]) -> None:
    """Raises BadRequest naming the attribute that is unknown or of the wrong kind."""
    for name in item.attributes:
        kind = kinds.get(name)
        if kind is None:
            raise BadRequest(
                f"item {item.id!r}: unknown attribute {name!r}; app.yaml has {sorted(kinds)}",
                field=f"attributes.{name}",
            )
        _check_value(item, name, kind)


def _check_value(item: Item, name: str, kind: AttributeKind) -> None:
    value = item.attributes.get(name)
    good = (
        value is None
        or {"keyword": isinstance(value, str), "bool": isinstance(value, bool), "number": _number(value) is not None}[
            kind
        ]
    )
    if not good:
        raise BadRequest(f"item {item.id!r}: attribute {name!r} is a {kind}, not {value!r}", field=f"attributes.{name}")


def _number(value: Any) -> float | None:
    """A finite float, or None: true, text, NaN and what a float cannot hold are no numbers here."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def build_catalogue(folder: Path, items: Iterable[Item], kinds: Mapping[str, AttributeKind]) -> int:
    """Write the snapshot of `items` in the order given; returns how many there were.

    Raises BadRequest for an id that comes twice or spans lines, or an attribute of the wrong kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = Columns(kinds)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in kinds}
    ids: dict[str, None] = {}
    offsets = [0]
    with (folder / "documents.bin").open("wb") as documents:
        for item in items:
            if item.id in ids or "\n" in item.id:
                raise BadRequest(f"item id {item.id!r} comes twice or holds a line break", field="id")
            ids[item.id] = None
            offsets.append(offsets[-1] + documents.write(orjson.dumps(dict(item.fields))))
            for name, part in columns.encode([item]).items():
                parts[name].append(part)
    for i, name in enumerate(sorted(kinds)):
        np.save(folder / f"column-{i}.npy", np.concatenate([columns.arrays[name], *parts[name]]))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    (folder / "ids.txt").write_bytes("".join(f"{i}\n" for i in ids).encode())
    about = {"kinds": columns.kinds, "vocabulary": {n: list(v) for n, v in columns.vocabulary.items()}}
    (folder / "attributes.json").write_text(json.dumps(about, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    return len(ids)


class Catalogue:
    """A snapshot and the changes since: rows 0..n-1 are the snapshot's, later rows were added while it served.

    A changed item gets a new row and its old one is masked; a deleted one is masked. Readers take no lock: arrays are
    replaced, never written in place, and `rows` grows last.
    """

    def __init__(self, ids: list[str], documents: bytes, offsets: NDArray[np.int64], columns: Columns) -> None:
        self.ids = ids
        self.snapshot_rows = len(ids)
        self.rows = len(ids)
        self._documents = documents
        self._offsets = offsets
        self._columns = columns
        self._row_of = {item_id: row for row, item_id in enumerate(ids)}
        self._added: list[bytes] = []
        self._live = np.ones(self.rows, np.bool_)
        self._dead = 0
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        about = json.loads((folder / "attributes.json").read_text(encoding="utf-8"))
        columns = Columns(about["kinds"])
        columns.vocabulary = {n: {w: i for i, w in enumerate(words)} for n, words in about["vocabulary"].items()}
        columns.arrays = {name: np.load(folder / f"column-{i}.npy") for i, name in enumerate(sorted(about["kinds"]))}
        ids = (folder / "ids.txt").read_bytes().decode().split("\n")[:-1]  # as bytes: an id may hold a \r
        return cls(ids, (folder / "documents.bin").read_bytes(), np.load(folder / "offsets.npy"), columns)

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._row_of

    def known_rows(self, ids: Iterable[str]) -> list[int]:
        """The live rows of those of `ids` that are items."""
        return [row for item_id in ids if (row := self._row_of.get(item_id)) is not None]

    def document(self, row: int) -> bytes:
        """The JSON text of the fields of a row."""
        if row < self.snapshot_rows:
            return self._documents[self._offsets[row] : self._offsets[row + 1]]
        return self._added[row - self.snapshot_rows]

    def item(self, row: int) -> Item:
        """The item of a row as it was stored, but for attributes without a value, which are left out."""
        return Item(self.ids[row], orjson.loads(self.document(row)), self._columns.attributes(row))

    def allowed(self, filters: Filters) -> NDArray[np.bool_] | None:
        """(rows,) True where a row is live and passes; None when every row does. Raises BadRequest."""
        live, dead = self._live, self._dead
        if filters:
            return self._columns.mask(self._resolved(filters), len(live)) & live
        return live if dead else None

    def _resolved(self, filters: Filters) -> Filters:
        """With numbers for what says "least_of" and "most_of" these items; such a bound is left out where none of them
        is here any more, or has the number."""
        return {
            name: {op: b for op, bound in wanted.items() if (b := self._bound(name, bound)) is not None}
            if isinstance(wanted, Mapping) and any(isinstance(bound, Mapping) for bound in wanted.values())
            else wanted
            for name, wanted in filters.items()
        }

    def _bound(self, name: str, bound: Any) -> Any:
        if not isinstance(bound, Mapping) or self._columns.kinds.get(name) != "number":
            return bound  # the mask says what is wrong with it
        for key, take in (("least_of", np.min), ("most_of", np.max)):
            if list(bound) == [key] and isinstance(bound[key], list | tuple):
                values = self._columns.arrays[name][self.known_rows(map(str, bound[key]))]
                values = values[~np.isnan(values)]
                return float(take(values)) if len(values) else None
        return bound

    def check(self, items: Iterable[Item]) -> None:
        """Raises BadRequest where `apply` would: for an attribute of the wrong kind."""
        self._columns.check(items)

    def apply(self, upserts: Sequence[Item], deletes: Sequence[str]) -> int:
        """Overlay changes; returns the row of the first upsert (the others follow it). Repeating is harmless.

        Raises BadRequest for an attribute of the wrong kind, and then changes nothing.
        """
        with self._lock:
            first = self.rows
            encoded = self._columns.encode(upserts)
            documents = [orjson.dumps(dict(item.fields)) for item in upserts]
            live = np.concatenate([self._live, np.ones(len(upserts), np.bool_)])
            self._added += documents
            for offset, item in enumerate(upserts):
                self.ids.append(item.id)
                self._retire(item.id, live)
                self._row_of[item.id] = first + offset
            for item_id in deletes:
                self._retire(item_id, live)
            for name, part in encoded.items():
                self._columns.arrays[name] = np.concatenate([self._columns.arrays[name], part])
            self._dead = int(len(live) - live.sum())
            self.rows = len(live)
            self._live = live
            return first

    def _retire(self, item_id: str, live: NDArray[np.bool_]) -> None:
        row = self._row_of.pop(item_id, None)
        if row is not None:
            live[row] = False
