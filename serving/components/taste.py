"""The component of an embedder that reads records: what a text and its record are to the encoder, as numbers.

`training.taste2vec` writes it, `serving.retrieve.taste_embedder` runs it. No torch here. Text, sensory words, metrics
and context are each read into an array of their own; what is missing is zero, and a flag beside it says so.

Files: `text/`, the embedder component of the sentences (see `embedder`); `taste.onnx`, the encoder: `text` (n, t),
`senses` (n, s), `metrics` and `metrics_there` (n, m), `context` (n, moments, c) and `context_there` (n, moments), all
float32, to `vectors`, (n, dimension) unit rows; `weights.npz`, to train on; `taste.json` (`TasteInfo`).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.components.record import Record, take_apart
from serving.errors import PhaseFailed
from serving.schema import ContextSpec, RecordSpec

FORMAT = 1
INFO_FILE = "taste.json"
HEAD_FILE = "taste.onnx"
WEIGHTS_FILE = "weights.npz"
TEXT_FOLDER = "text"

Floats = NDArray[np.float32]
Vocabulary = Mapping[str, Mapping[str, Sequence[str]]]
"""Group -> sense -> its spellings, in any language: fruity -> citrus -> lemon, 레몬, …"""


class Widths(NamedTuple):
    """Of the encoder's inputs. `moments` is the number of context entries that it reads, `context` the width of one."""

    text: int
    senses: int
    metrics: int
    moments: int
    context: int


class TasteInputs(NamedTuple):
    """What the encoder reads, by the names of its inputs. A row an input."""

    text: Floats
    senses: Floats
    metrics: Floats
    metrics_there: Floats
    context: Floats
    context_there: Floats

    @classmethod
    def empty(cls, count: int, widths: Widths) -> TasteInputs:
        text, senses, metrics, moments, context = widths
        shapes = ((text,), (senses,), (metrics,), (metrics,), (moments, context), (moments,))
        return cls(*(np.zeros((count, *shape), np.float32) for shape in shapes))

    def rows(self, which: Any) -> TasteInputs:
        return TasteInputs(*(array[which] for array in self))


@dataclass(frozen=True, slots=True)
class TasteInfo:
    """What `taste.json` says. `learned_until_s`: Unix time of the newest example it learnt from, 0 before training."""

    record: Mapping[str, Any]
    vocabulary: Mapping[str, Mapping[str, Sequence[str]]]
    dimension: int
    text_dimension: int
    learned_until_s: float = 0.0
    format: int = field(default=FORMAT)

    @classmethod
    def load(cls, folder: Path) -> TasteInfo:
        """Raises PhaseFailed where `folder` holds no encoder that this version can read."""
        try:
            about = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
            if about["format"] == FORMAT:
                return cls(**about)
            fault = f"it has format {about['format']}, this version reads {FORMAT}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = repr(error)
        raise PhaseFailed(f"{INFO_FILE} of {folder.name!r} cannot be used: {fault}; train it again", phase="embed")

    def save(self, folder: Path) -> None:
        # Not sorted: the order of senses, metrics and context fields is that of the encoder's columns.
        (folder / INFO_FILE).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @property
    def reads(self) -> RecordSpec:
        return RecordSpec.model_validate(self.record)

    @property
    def widths(self) -> Widths:
        spec, senses = self.reads, sum(len(group) for group in self.vocabulary.values())
        # A graph has no input of width 0: what an app does not declare is one column that is never there.
        return Widths(
            self.text_dimension, senses or 1, len(spec.metrics) or 1, spec.max_context, spec.context_width or 1
        )


_SUFFIX = "(?:s|es|y|ish|ness)?"
_NEGATED_BEFORE = re.compile(r"(?:\b(?:no|not|without|never|lacks|lacking)\s+(?:\w+\s+)?|안\s+)$")
_NEGATED_AFTER = re.compile(r"[가-힣]{0,2}\s*(?:없|않|아니|덜하)")
_HANGUL = re.compile("[가-힣]")


class SenseReader:
    """Finds the senses that a text names. The longest spelling wins; one that is denied ("not sour", "쓴맛이 없고")
    does not count. Korean is matched anywhere, for its endings are glued on; Latin words only as words."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.senses = [sense for group in vocabulary.values() for sense in group]
        self.groups = [number for number, group in enumerate(vocabulary.values()) for _ in group]
        spellings = (word for group in vocabulary.values() for words in group.values() for word in words)
        senses = (sense for group in vocabulary.values() for sense, words in group.items() for _ in words)
        self._sense_of = {_fold(word): self.senses.index(sense) for word, sense in zip(spellings, senses, strict=True)}
        longest_first = sorted(self._sense_of, key=lambda word: (-len(word), word))
        korean = "|".join(re.escape(word) for word in longest_first if _HANGUL.search(word))
        latin = "|".join(re.escape(word) for word in longest_first if not _HANGUL.search(word))
        kinds = [f"(?P<ko>{korean})" if korean else "", rf"(?<!\w)(?P<en>{latin}){_SUFFIX}(?!\w)" if latin else ""]
        self._pattern = re.compile("|".join(kind for kind in kinds if kind) or r"(?!)")

    def find(self, text: str) -> set[int]:
        """Numbers of senses, as in `senses`."""
        return set(self._find(_fold(text)))

    def _find(self, folded: str) -> Iterator[int]:
        for match in self._pattern.finditer(folded):
            denied = _NEGATED_BEFORE.search(folded[: match.start()]) or _NEGATED_AFTER.match(folded, match.end())
            if not denied:
                yield self._sense_of[match[match.lastgroup or 0]]


class TasteReader:
    """Inputs of an embedder to what the encoder reads. A value that is no number, or no known word, is missing; one
    beyond its range is taken for its end: records of items were checked by nobody."""

    def __init__(self, info: TasteInfo, embed: Callable[[Sequence[str]], Floats]) -> None:
        """`embed` makes unit rows of texts, as the embedder in `text/`."""
        self._embed = embed
        self._spec = info.reads
        self._senses = SenseReader(info.vocabulary)
        self._widths = info.widths

    def read(self, values: Sequence[str]) -> TasteInputs:
        apart = [take_apart(value) for value in values]
        inputs = TasteInputs.empty(len(apart), self._widths)
        for row, (text, record) in enumerate(apart):
            found = list(self._senses.find(text))
            inputs.senses[row, found] = 1 / math.sqrt(max(len(found), 1))
            self._read_metrics(record, inputs, row)
            self._read_context(record, inputs, row)
        written = {row: text for row, (text, _) in enumerate(apart) if text.strip()}
        if written:
            inputs.text[list(written)] = self._embed(list(written.values()))
        return inputs

    def _read_metrics(self, record: Record, inputs: TasteInputs, row: int) -> None:
        metrics = record.get("metrics")
        if not isinstance(metrics, Mapping):
            return
        for place, (name, metric) in enumerate(self._spec.metrics.items()):
            if (number := _number(metrics.get(name))) is not None:
                inputs.metrics[row, place] = min(max(number, metric.min), metric.max)
                inputs.metrics_there[row, place] = 1

    def _read_context(self, record: Record, inputs: TasteInputs, row: int) -> None:
        moments = record.get("context")
        if not isinstance(moments, list) or not self._spec.context:
            return
        newest = [m for m in moments if isinstance(m, Mapping)][-self._spec.max_context :]
        for step, moment in enumerate(newest):
            inputs.context[row, step] = [
                number for name, spec in self._spec.context.items() for number in _moment(spec, moment.get(name))
            ]
            inputs.context_there[row, step] = 1


def _moment(spec: ContextSpec, value: Any) -> list[float]:
    """(spec.width,) of one context field: the last says whether it is there."""
    if spec.choices:
        return [float(value == choice) for choice in spec.choices] + [float(value in spec.choices)]
    number = _number(value)
    if number is None:
        return [0.0] * spec.width
    if spec.cycle is not None:
        angle = 2 * math.pi * number / spec.cycle
        return [math.sin(angle), math.cos(angle), 1.0]
    assert spec.min is not None
    assert spec.max is not None  # ContextSpec._is_one_kind
    return [2 * (min(max(number, spec.min), spec.max) - spec.min) / (spec.max - spec.min) - 1, 1.0]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
