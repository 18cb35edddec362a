"""The embedder component: a text encoder as files, and the fingerprint that ties an index to its embedder.

`training.export` writes it, `onnx_embedder` and `torch_embedder` of `serving.retrieve` load it. No torch here.

Files: `tokenizer.json`; `model.onnx` float32 and `model.int8.onnx` dynamically quantised, both from `input_ids` and
`attention_mask`, (n, tokens) int64, to `vectors`, (n, dimension) float32 pooled unit rows; `embedder.json`
(`EmbedderInfo`); optionally `torch/`, a sentence-transformers folder, which only a GPU needs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from registry.content import digest_json
from serving.errors import BadRequest, PhaseFailed

FORMAT = 1
INFO_FILE = "embedder.json"
TOKENIZER_FILE = "tokenizer.json"
TORCH_FOLDER = "torch"

Pooling = Literal["mean", "cls", "last"]
Precision = Literal["float32", "int8"]
PrecisionChoice = Literal["auto", "float32", "int8"]

MODEL_FILES: dict[Precision, str] = {"float32": "model.onnx", "int8": "model.int8.onnx"}


@dataclass(frozen=True, slots=True)
class Int8Gate:
    """What int8 costs as a retriever, against float32 over the same sampled items; ratios and cosines 0..1.

    `overlap_ratio`: share of the float32 top k that int8 queries find among int8 documents; `mixed_overlap_ratio`: the
    same for float32 queries over int8 documents, which is what a GPU in front of an index from a CPU does.
    """

    documents: int
    queries: int
    k: int
    overlap_ratio: float
    mixed_overlap_ratio: float
    mean_cosine: float
    min_overlap_ratio: float
    min_mean_cosine: float
    passed: bool


@dataclass(frozen=True, slots=True)
class EmbedderInfo:
    """What `embedder.json` says. Prompts are put before the text, as the model was trained."""

    dimension: int
    pooling: Pooling
    normalise: bool
    max_tokens: int
    pad_token_id: int
    query_prompt: str
    document_prompt: str
    int8: Int8Gate
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path) -> EmbedderInfo:
        """Raises PhaseFailed where `folder` holds no embedder that this version can read."""
        try:
            about = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
            if about["format"] == FORMAT:
                return cls(**{**about, "int8": Int8Gate(**about["int8"])})
            fault = f"it has format {about['format']}, this version reads {FORMAT}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = repr(error)
        raise PhaseFailed(
            f"{INFO_FILE} of {folder.name!r} cannot be used: {fault}; export the embedder again", phase="embed"
        )

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1, sort_keys=True)
        (folder / INFO_FILE).write_text(text + "\n", encoding="utf-8")

    def resolve(self, choice: str) -> Precision:
        """`auto` is int8 if it passed its gate, else float32: the same on every machine. Raises BadRequest."""
        if choice not in get_args(PrecisionChoice):
            raise BadRequest(
                f"there is no precision {choice!r}; use one of {list(get_args(PrecisionChoice))}", field="precision"
            )
        if choice == "auto":
            return "int8" if self.int8.passed else "float32"
        return cast(Precision, choice)

    def token_limit(self, max_tokens: int | None) -> int:
        """Tokens of a text that are read, special ones included: `max_tokens`, but no more than the model takes."""
        if max_tokens is not None and max_tokens < 3:
            raise BadRequest(
                f"max_tokens is {max_tokens}; it has to leave room for text: 3 at least", field="max_tokens"
            )
        return self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)


def component_file(folder: Path, name: str) -> Path:
    """The file `name` of an embedder. Raises PhaseFailed where it is missing."""
    path = folder / name
    if not path.is_file():
        raise PhaseFailed(f"the embedder {folder.name!r} has no {name}; export the embedder again", phase="embed")
    return path


def fingerprint(folder: Path, precision: str = "auto", max_tokens: int | None = None) -> str:
    """SHA-256 hex over all that decides a vector: weights, tokenizer, pooling, normalisation, dimension, prompts, token
    limit and precision. The same on every machine; times and names of files do not enter. Raises PhaseFailed,
    BadRequest."""
    info = EmbedderInfo.load(folder)
    resolved = info.resolve(precision)
    return digest_json(
        {
            "weights": _digest(component_file(folder, MODEL_FILES[resolved])),
            "tokenizer": _digest(component_file(folder, TOKENIZER_FILE)),
            "pooling": info.pooling,
            "normalise": info.normalise,
            "dimension": info.dimension,
            "prompts": [info.query_prompt, info.document_prompt],
            "pad_token_id": info.pad_token_id,
            "max_tokens": info.token_limit(max_tokens),
            "precision": resolved,
        }
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
