"""The funnel components: what sources learnt from what users did, as arrays over the items of a snapshot.

`training.funnels` makes them, `serving.retrieve.funnels` searches them. Files: `funnel.json` (engine, options and
vocabularies), `ids.txt` (an item id a line; arrays count items in this order), `people.txt` (a pseudonym a line, where
arrays count people), and an .npy file per array: the same content gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from serving.components.rank_features import category_of, number_of
from serving.errors import PhaseFailed
from serving.schema import Item
from serving.schema.app_spec import AttributeKind

FORMAT = 1
FILE = "funnel.json"
Feature = tuple[str, str]
"""Attribute and value; of a number the band it lies in."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """`about` is JSON; what is in it and in `arrays` is between the maker and the source of an `engine`."""

    engine: str
    ids: Sequence[str]
    arrays: Mapping[str, NDArray[Any]]
    about: Mapping[str, Any] = field(default_factory=dict)
    people: Sequence[str] = ()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        raw = {"format": FORMAT, "engine": self.engine, "arrays": sorted(self.arrays), "about": self.about}
        text = json.dumps(raw, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
        for name, lines in (("ids", self.ids), ("people", self.people)):
            (folder / f"{name}.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
        for name, array in self.arrays.items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Funnel:
        """Raises PhaseFailed where `folder` holds none that this version can read."""
        try:
            raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if raw["format"] == FORMAT:
                arrays = {name: np.load(folder / f"{name}.npy") for name in raw["arrays"]}
                return cls(
                    raw["engine"], _lines(folder / "ids.txt"), arrays, raw["about"], _lines(folder / "people.txt")
                )
            fault = f"it has format {raw['format']}, this version reads {FORMAT}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = repr(error)
        raise PhaseFailed(f"{folder.name!r} cannot be used: {fault}; build the release again", phase="retrieve")


def with_matrix(name: str, matrix: sp.csr_matrix) -> dict[str, NDArray[Any]]:
    """A sparse matrix as arrays of a funnel."""
    matrix.sort_indices()
    return {
        f"{name}_data": matrix.data.astype(np.float32),
        f"{name}_indices": matrix.indices.astype(np.int32),
        f"{name}_indptr": matrix.indptr.astype(np.int64),
    }


def matrix_of(funnel: Funnel, name: str, columns: int) -> sp.csr_matrix:
    data, indices, indptr = (funnel.arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
    return sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, columns))


def features_of(item: Item, kinds: Mapping[str, AttributeKind], edges: Mapping[str, Sequence[float]]) -> list[Feature]:
    """What an item is like: its attributes, each number as the band of `edges` that it lies in."""
    found: list[Feature] = []
    for name, kind in kinds.items():
        value = item.attributes.get(name)
        if kind == "number":
            number = number_of(value)
            if not math.isnan(number) and name in edges:
                found.append((name, str(int(np.searchsorted(edges[name], number, side="right")))))
        elif value is not None and value is not False:
            found.append((name, category_of(value)))
    return found


def feature_matrix(
    items: Sequence[Item],
    kinds: Mapping[str, AttributeKind],
    edges: Mapping[str, Sequence[float]],
    weights: Mapping[Feature, float],
) -> sp.csr_matrix:
    """(items, features) in the order of `weights`, float32 rows of unit length; a feature that is not in it is none."""
    column = {feature: i for i, feature in enumerate(weights)}
    rows = [[f for f in features_of(item, kinds, edges) if f in column] for item in items]
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([column[f] for row in rows for f in row], np.int32)
    data = np.array([weights[f] for row in rows for f in row], np.float32)
    return unit_rows(sp.csr_matrix((data, indices, indptr), shape=(len(rows), len(column)), dtype=np.float32))


def unit_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Rows of unit length; a row of zeros stays one."""
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return sp.csr_matrix(sp.diags_array(scale) @ matrix)


def slot_of(value: Any, choices: Sequence[str], low: float, high: float, slots: int) -> int | None:
    """The row of a context value: the place of a choice, or the part of `low`..`high` that a number lies in."""
    if choices:
        return list(choices).index(value) if value in choices else None
    number = number_of(value)
    if math.isnan(number) or not low <= number <= high:
        return None
    return min(int((number - low) / (high - low) * slots), slots - 1)


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")[:-1]  # as bytes: an id may hold a \r
