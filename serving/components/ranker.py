"""The ranker component: a Wide & Deep model as files, and the scoring of candidates with it. No torch here.

`training.wide_deep` writes it; a rank phase loads it and asks for the probability that a request's candidates are
chosen (port `serving.ports.Ranker`). Paper: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems".

Files: `ranker.json` (`RankerInfo`: what the inputs are, with every vocabulary), `ranker.onnx`: from `codes`
(n, embedded) int64, `numbers` (n, 2 * numerics) float32 and `wide` (n, crosses) int64 to `probabilities` (n,) float32,
calibrated.

New users and items need no new model: an id that training did not see has the row that training taught with hidden ids,
and an item's attributes say the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from serving.components.rank_features import FeatureEncoder, Features, FeatureSpec
from serving.errors import PhaseFailed
from serving.ports import ToRank
from serving.schema import Item

FORMAT = 1
INFO_FILE = "ranker.json"
MODEL_FILE = "ranker.onnx"


@dataclass(frozen=True, slots=True)
class RankerInfo:
    """What `ranker.json` says. `scale` and `shift` calibrate the model's logit; they are in the graph already."""

    features: FeatureSpec
    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def load(cls, folder: Path) -> RankerInfo:
        """Raises PhaseFailed where `folder` holds no ranker that this version can read."""
        try:
            raw = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
            if raw["format"] == FORMAT:
                return cls(FeatureSpec.from_json(raw["features"]), float(raw["scale"]), float(raw["shift"]))
            fault = f"it has format {raw['format']}, this version reads {FORMAT}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = repr(error)
        raise PhaseFailed(
            f"{INFO_FILE} of {folder.name!r} cannot be used: {fault}; train the ranker again", phase="rank"
        )

    def save(self, folder: Path) -> None:
        raw = {"format": FORMAT, "features": self.features.as_json(), "scale": self.scale, "shift": self.shift}
        text = json.dumps(raw, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        (folder / INFO_FILE).write_text(text + "\n", encoding="utf-8")


class OnnxRanker:
    """`serving.ports.Ranker` over a component's folder. Thread-safe; `threads` bounds the cores one call uses."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        info = RankerInfo.load(folder)
        self.fingerprint = info.features.fingerprint
        self.encoder = FeatureEncoder(info.features)
        self._session = _session(folder / MODEL_FILE, threads)
        self._inputs = {one.name for one in self._session.get_inputs()}

    def encode(self, items: Sequence[Item]) -> Features:
        """The items' part of the input. Whoever ranks the same items again and again keeps it, and gives `score_one`
        the rows it needs."""
        return self.encoder.items(items)

    def score_one(self, user: str, record: Mapping[str, Any], items: Features) -> NDArray[np.float32]:
        """(n,) probabilities that this request chooses each of the encoded items."""
        return self.run(self.encoder.requests([user], [record]) | items)

    def score(self, batch: Sequence[ToRank]) -> list[NDArray[np.float32]]:
        """Per request the (n,) probabilities of its items, in their order; one run of the graph for all."""
        counts = [len(one.items) for one in batch]
        if not sum(counts):
            return [np.empty(0, np.float32) for _ in batch]
        asked = self.encoder.requests([one.user for one in batch], [one.record for one in batch])
        items = self.encoder.items([item for one in batch for item in one.items])
        scores = self.run(asked.take(np.repeat(np.arange(len(batch)), counts)) | items)
        return np.split(scores, np.cumsum(counts)[:-1])

    def run(self, rows: Features) -> NDArray[np.float32]:
        """(n,) float32 probabilities of encoded rows, both sides joined."""
        if not len(rows.codes):
            return np.empty(0, np.float32)
        feed = {
            "codes": self.encoder.embedded(rows.codes),
            "numbers": rows.numbers,
            "wide": self.encoder.wide(rows.codes),
        }
        scores: NDArray[np.float32] = self._session.run(None, {n: v for n, v in feed.items() if n in self._inputs})[0]
        return scores


def _session(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        raise PhaseFailed(f"onnxruntime cannot load {model.name}: {error}; train it again", phase="rank") from error
