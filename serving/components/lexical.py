"""The lexical component: text analysis and an inverted index of precomputed BM25F scores, over hashed features.

`build_lexical` is called when a release is indexed, `serving.retrieve.lexical` searches what it wrote. Features are
64-bit hashes of stems, word parts, Hangul bigrams and whole names, so that a live item can use words that the index
has never seen. Scoring is BM25F (Robertson, Zaragoza, Taylor 2004, "Simple BM25 extension to multiple weighted
fields"): the frequencies of a word in the fields, each divided by its field's relative length, are added up by weight
before they saturate.

Files, rows counting in the catalogue's snapshot, F features, P postings:
`features.npy` (F,) uint64, sorted; `starts.npy` (F + 1,) int64 into `rows.npy` (P,) int32 and `scores.npy` (P,)
float32, idf included; `lexical.json` the constants that score rows added later.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import snowballstemmer
from numpy.typing import NDArray

from serving.errors import BadRequest, PhaseFailed
from serving.schema import Item

FORMAT = 1
DEFAULTS = {"k1": 1.2, "b": 0.75, "name_bonus": 0.25}
NAME_WORDS = 4
PROGRESS_EVERY = 1000

Features = NDArray[np.uint64]

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and any are as at be but by can could do does for from had has have how i if in into is it its like me
        my of on or our s so some such t than that the their them then there these they this to us use used using want
        was we what when where which while who will with would you your""",
    )
)
WORD = re.compile(r"\w+(?:[-+._]+\w+)*(?:\++|#)?")
ASCII_PART = re.compile(r"\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
PART = re.compile(r"[가-힣]+|\d+|[^\W\d_가-힣]+")
HANGUL = re.compile(r"[가-힣]+")

_stemmer = snowballstemmer.stemmer("english")
_stemmer_lock = threading.Lock()  # the stemmer keeps the word it works on in itself


def words(text: str) -> list[str]:
    """The words of a text as written, compounds such as `python3-numpy` and `libstdc++` whole, after NFKC."""
    return WORD.findall(text if text.isascii() else unicodedata.normalize("NFKC", text))


def terms(word: str) -> list[str]:
    """What a word is found by: its stem; of a compound also the whole and the stems of its parts; Hangul bigrams."""
    folded = word.casefold()
    if folded in STOP_WORDS:
        return []
    parts = (ASCII_PART if word.isascii() else PART).findall(word)
    if len(parts) == 1 and len(parts[0]) == len(word):
        return [*_stems(folded), *_bigrams(folded)]
    found = [folded]
    for part in (p.casefold() for p in parts):
        # Single letters and digits of a compound say nothing on their own.
        if (len(part) > 1 or HANGUL.match(part)) and part not in STOP_WORDS:
            found += [*_stems(part), *_bigrams(part)]
    return found


def _stems(word: str) -> list[str]:
    return [_stem(word)] if word.isascii() and word.isalpha() else [word]


@lru_cache(maxsize=1 << 17)
def _stem(word: str) -> str:
    with _stemmer_lock:
        return str(_stemmer.stemWord(word))


def _bigrams(word: str) -> list[str]:
    """Pairs of syllables, so that a Korean word meets its inflections and compounds."""
    if len(word) < 3 or not HANGUL.fullmatch(word):
        return []
    return [word[i : i + 2] for i in range(len(word) - 1)]


def hash_term(term: str) -> int:
    """64 bits: no two words of a catalogue of millions are likely to meet."""
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")


def _features(word: str) -> tuple[int, ...]:
    return tuple(hash_term(term) for term in terms(word))


word_features = lru_cache(maxsize=1 << 17)(_features)
"""What a word is found by, for queries and single items, which use the same words again and again."""


def text_features(text: str) -> list[int]:
    """The features of a text, in order and with repetitions."""
    return [feature for word in words(text) for feature in word_features(word)]


def name_feature(name_words: Iterable[str]) -> int:
    """The feature of an item whose whole name is these words."""
    return hash_term("\0name " + " ".join(w.casefold() for w in name_words))


def field_text(value: Any) -> str:
    """A field as text: lists are joined, None is empty."""
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Scoring:
    """The constants of BM25F that every row of one component is scored with.

    `rows` and `mean_lengths` (in features) are the snapshot's; `names` is the field whose exact match earns a bonus.
    """

    weights: Mapping[str, float]
    mean_lengths: Mapping[str, float]
    rows: int
    k1: float
    b: float
    name_bonus: float
    names: str
    format: int = FORMAT

    def idf(self, document_frequency: NDArray[np.int64]) -> NDArray[np.float32]:
        """ln(1 + (N - df + 0.5) / (df + 0.5)): above 0 for every df up to N."""
        df = document_frequency
        return np.log1p((self.rows - df + 0.5) / (df + 0.5)).astype(np.float32)

    def frequency(self, field: str, count: Any, length: Any) -> Any:
        """Weighted, length-normalised frequency of a feature in one field; numbers or arrays of them."""
        return self.weights[field] * count / (1 - self.b + self.b * length / (self.mean_lengths[field] or 1.0))

    def saturate(self, frequency: Any) -> Any:
        """0..k1 + 1: what is multiplied with the idf."""
        return (self.k1 + 1) * frequency / (self.k1 + frequency)

    def document(self, item: Item) -> tuple[dict[int, float], int | None]:
        """(feature -> saturated frequency, name feature) of an item outside the snapshot; no name feature where the
        name is empty or longer than NAME_WORDS."""
        frequencies: dict[int, float] = {}
        for field in self.weights:
            features = text_features(field_text(item.fields.get(field)))
            for feature, count in Counter(features).items():
                frequencies[feature] = frequencies.get(feature, 0.0) + self.frequency(field, count, len(features))
        name = words(field_text(item.fields.get(self.names)))
        named = name_feature(name) if 0 < len(name) <= NAME_WORDS else None
        return {f: self.saturate(v) for f, v in frequencies.items()}, named


class _Vocabulary(dict[str, int]):
    """Word -> its number; a word it has not seen gets the next one."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


class _Postings:
    """The words of every field as numbers, four bytes each, as the items stream by. What a word is found by is worked
    out once for each different word: a catalogue of 4 million words has 180,000."""

    def __init__(self, fields: Iterable[str]) -> None:
        self.fields = list(fields)
        self.rows = 0
        self._vocabulary = _Vocabulary()
        self._words: list[array[int]] = [array("i") for _ in self.fields]
        self._words_of_row: list[array[int]] = [array("i") for _ in self.fields]
        self._names: dict[int, int] = {}

    def add(self, item: Item) -> None:
        for field, numbers, per_row in zip(self.fields, self._words, self._words_of_row, strict=True):
            found = words(field_text(item.fields.get(field)))
            numbers.extend(map(self._vocabulary.__getitem__, found))
            per_row.append(len(found))
            if field == self.fields[0] and 0 < len(found) <= NAME_WORDS:
                self._names[self.rows] = name_feature(found)
        self.rows += 1

    def count(self) -> _Counted:
        """How often each feature stands in each field of each row."""
        per_word = [_features(word) for word in self._vocabulary]
        sizes = np.fromiter(map(len, per_word), np.int64, len(per_word))
        starts = np.cumsum(sizes) - sizes
        flat = np.fromiter(chain.from_iterable(per_word), np.uint64, int(sizes.sum()))
        named = np.fromiter(self._names.values(), np.uint64, len(self._names))
        features, ranks = np.unique(np.concatenate([flat, named]), return_inverse=True)
        # One number for feature, row and field: sorting it sorts by all three. Names count as a field of their own.
        fields = len(self.fields) + 1
        keys, counts, lengths = [], [], {}
        for number, field in enumerate(self.fields):
            word, per_row = np.array(self._words[number], np.int32), np.array(self._words_of_row[number], np.int32)
            size = sizes[word]
            rows = np.repeat(np.arange(self.rows), per_row)
            lengths[field] = np.bincount(rows, size, self.rows).astype(np.int32)
            place = np.arange(size.sum()) + np.repeat(starts[word] - np.cumsum(size) + size, size)
            key = np.sort((ranks[place] * self.rows + np.repeat(rows, size)) * fields + number)
            first = _firsts(key)
            keys.append(key[first])
            counts.append(np.diff(first, append=len(key)))
        rows = np.fromiter(self._names, np.int64, len(self._names))
        keys.append((ranks[len(flat) :] * self.rows + rows) * fields + fields - 1)
        counts.append(np.ones(len(rows), np.int64))
        key, found = np.concatenate(keys), np.concatenate(counts)
        order = np.argsort(key)
        key = key[order]
        places = key // fields
        return _Counted(
            features, places // max(1, self.rows), places % max(1, self.rows), key % fields, found[order], lengths
        )


class _Counted(NamedTuple):
    """Parallel arrays over (feature, row, field), sorted: the feature's place in `features`, the row, the field's
    number (one past the last: the name) and the count. `lengths`: field -> (rows,) features."""

    features: Features
    ranks: NDArray[np.int64]
    rows: NDArray[np.int64]
    fields: NDArray[np.int64]
    counts: NDArray[np.int64]
    lengths: Mapping[str, NDArray[np.int32]]

    def scored(self, scoring: Scoring) -> dict[str, NDArray[Any]]:
        """The arrays of the component."""
        frequencies = np.ones(len(self.rows), np.float32)
        for number, field in enumerate(self.lengths):
            at = self.fields == number
            frequencies[at] = scoring.frequency(field, self.counts[at], self.lengths[field][self.rows[at]])
        firsts = _firsts(self.ranks, self.rows)
        ranks, rows = self.ranks[firsts], self.rows[firsts]
        scores = scoring.saturate(np.add.reduceat(frequencies, firsts) if len(firsts) else frequencies)
        starts = np.append(_firsts(ranks), len(ranks))
        df = np.diff(starts)
        scores = scores * np.repeat(scoring.idf(df), df)
        # Names are features too; their postings hold 1, and the query says what a name is worth.
        scores[self.fields[firsts] == len(self.lengths)] = 1
        return {
            "features": self.features[ranks[starts[:-1]]],
            "starts": starts.astype(np.int64),
            "rows": rows.astype(np.int32),
            "scores": scores.astype(np.float32),
        }


def _firsts(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Where a new key begins in sorted keys."""
    if not len(keys[0]):
        return np.empty(0, np.int64)
    changed = np.zeros(len(keys[0]), np.bool_)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed).astype(np.int64)


def build_lexical(
    folder: Path,
    items: Iterable[Item],
    weights: Mapping[str, float],
    options: Mapping[str, float],
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the component for `items` in the order given; returns how many there were.

    `weights` are the searched fields, the name first; `options` are k1 (1.2), b (0.75) and name_bonus (0.25: what an
    item's whole name within a query adds, as a share of the most that its words can score). `progress` hears the number
    of items read. Raises BadRequest.
    """
    constants = _constants(weights, options)
    postings = _Postings(weights)
    for item in items:
        postings.add(item)
        if progress is not None and postings.rows % PROGRESS_EVERY == 0:
            progress(postings.rows)
    count = postings.rows
    counted = postings.count()
    means = {field: int(lengths.sum()) / max(1, count) for field, lengths in counted.lengths.items()}
    scoring = Scoring(
        weights=dict(weights),
        mean_lengths=means,
        rows=count,
        k1=constants["k1"],
        b=constants["b"],
        name_bonus=constants["name_bonus"],
        names=postings.fields[0],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in counted.scored(scoring).items():
        np.save(folder / f"{name}.npy", values)
    (folder / "lexical.json").write_text(json.dumps(asdict(scoring), indent=1, ensure_ascii=False), encoding="utf-8")
    if progress is not None:
        progress(count)
    return count


def _constants(weights: Mapping[str, float], options: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise BadRequest(f"lexical has no option {unknown[0]!r}; there are {sorted(DEFAULTS)}", field="options")
    constants = {**DEFAULTS, **options}
    for name, (low, high) in {"k1": (0.01, 100.0), "b": (0.0, 1.0), "name_bonus": (0.0, 100.0)}.items():
        if not low <= constants[name] <= high:
            raise BadRequest(f"{name} is {constants[name]}, but lies in {low}..{high}", field=f"options.{name}")
    if not weights:
        raise BadRequest("lexical needs at least one field to search", field="fields")
    for field, weight in weights.items():
        if not weight > 0:
            raise BadRequest(f"the weight of {field!r} is {weight}, but must be above 0", field=f"fields.{field}")
    return constants


def load_scoring(folder: Path) -> Scoring:
    """Raises PhaseFailed where the component was written by another version of this module."""
    about = json.loads((folder / "lexical.json").read_text(encoding="utf-8"))
    if about.get("format") != FORMAT:
        raise PhaseFailed(
            f"the lexical component in {folder} has format {about.get('format')}, but this version reads "
            f"{FORMAT}: build the release again with `palate index`",
            phase="retrieve",
        )
    return Scoring(**about)
