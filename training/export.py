"""Turns a sentence-transformers model into the embedder component that serving runs without torch.

`palate index` calls it, and publishing a fine-tuned model does. The graph is made by torch's own exporter from the
model's plain attention, in standard operators only: measured on int8, ONNX Runtime's fused attention is slower. Pooling
and normalisation are inside the graph: 1.5 kB a text leave ONNX Runtime then, and not 1.5 kB a token. What is exported
is compared with the model before it is kept, and quantised; `training.int8_gate` judges whether int8 may serve.

Quantisation is per channel, without reduced range: per tensor, a fifth of the neighbours change. Reduced range would
only help processors without VNNI, at the price of neighbours on all others.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from serving.components.embedder import (
    MODEL_FILES,
    TOKENIZER_FILE,
    TORCH_FOLDER,
    EmbedderInfo,
    Int8Gate,
    Pooling,
    Precision,
)
from serving.components.onnx_encoder import OnnxEncoder
from training.errors import ExportRefused
from training.int8_gate import Encode, run_gate, sample
from training.models import model_folder

OPSET = 20
MAX_ABS_DIFFERENCE = 1e-4
CHECKED_TEXTS = 32
MAX_BATCH = 65_536
PROTOBUF_LIMIT_BYTES = 2**31
POOLING: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
ALWAYS_CHECKED = ("", "a", "Lake Chalice Marlborough", "레이크 찰리스 말보로", "word " * 600)
"""Edge cases of every embedder: no text, one token, two scripts, and more than it reads."""

Progress = Callable[[str], None]
"""Told each step as it begins."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What was read of the model: its transformer, tokenizer and settings."""

    model: Any
    pooling: Pooling
    max_tokens: int
    pad_token_id: int
    query_prompt: str
    document_prompt: str

    @property
    def dimension(self) -> int:
        """Of the vectors that are served: fewer than the model's where it was trained to be cut (Matryoshka)."""
        own = int(self.model[0].auto_model.config.hidden_size)
        return min(own, self.model.truncate_dim or own)


def export_embedder(
    model: str | Path,
    folder: Path,
    sample_texts: Sequence[str],
    progress: Progress | None = None,
    *,
    torch_weights: bool = False,
) -> EmbedderInfo:
    """Write the component of `model`, a sentence-transformers folder or "minilm", to the new `folder`.

    `sample_texts` are texts of the app's items: the int8 gate samples them. `torch_weights` adds what a GPU needs, and
    a later training that begins with this model. A model whose `truncate_dim` is set serves vectors of that dimension.
    The same inputs give the same files. `folder` appears complete or not at all. Raises ExportRefused.
    """
    tell = progress or (lambda _: None)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportRefused(f"{folder} exists and is not empty; give a new folder")
    tell("reading the model")
    source = _read(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        info = _write(source, partial, sample_texts, tell)
        if torch_weights:
            tell("writing the torch weights")
            _write_torch(source, partial / TORCH_FOLDER)
        partial.chmod(0o755)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return info


def _write(source: _Source, folder: Path, texts: Sequence[str], tell: Progress) -> EmbedderInfo:
    float32, int8 = (folder / MODEL_FILES[p] for p in cast(tuple[Precision, ...], ("float32", "int8")))
    _write_tokenizer(source, folder / TOKENIZER_FILE)
    tell("exporting the float32 graph")
    with quiet():
        _export_graph(source, float32)
    tell("comparing it with the model")
    encoder32 = _encoder(source, folder, float32)
    _compare(source, encoder32, [*ALWAYS_CHECKED, *sample(texts, CHECKED_TEXTS)])
    tell("quantising to int8")
    with quiet():
        quantize_dynamic(float32, int8, per_channel=True, reduce_range=False, weight_type=QuantType.QInt8)
    save_graph(onnx.load(int8), int8)
    tell("comparing int8 with float32 on the items")
    gate = run_gate(texts, _both(source, encoder32), _both(source, _encoder(source, folder, int8)))
    info = _info(source, gate)
    info.save(folder)
    return info


def _read(model: str | Path) -> _Source:
    path = model_folder(model)
    if not (path / "modules.json").is_file():
        raise ExportRefused(f"{path} is no sentence-transformers folder: it has no modules.json")
    if adapters := sorted(path.rglob("adapter_config.json")):
        raise ExportRefused(
            f"{path} has a peft adapter beside its weights ({adapters[0].relative_to(path)}): merge it into them "
            "(`merge_and_unload`) and save the model again"
        )
    with quiet():
        loaded = SentenceTransformer(
            str(path), device="cpu", local_files_only=True, model_kwargs={"attn_implementation": "eager"}
        )
    loaded.eval().float()
    names = [type(module).__name__ for module in loaded]
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
        raise ExportRefused(f"{path} has the modules {names}; only Transformer, Pooling and Normalize can be exported")
    mode = loaded[1].pooling_mode
    if mode not in POOLING:
        raise ExportRefused(f"{path} pools by {mode!r}; only {sorted(POOLING)} can be exported")
    size = sum(p.numel() for p in loaded.parameters()) * 4
    if size >= PROTOBUF_LIMIT_BYTES:
        raise ExportRefused(f"{path} has {size} bytes of float32 weights; an ONNX file holds {PROTOBUF_LIMIT_BYTES}")
    positions = getattr(loaded[0].auto_model.config, "max_position_embeddings", None)
    limit = min(x for x in (loaded.max_seq_length, positions, 8192) if x)
    prompts = loaded.prompts or {}
    default = prompts.get(loaded.default_prompt_name or "", "")
    return _Source(
        loaded,
        POOLING[mode],
        int(limit),
        int(loaded.tokenizer.pad_token_id or 0),
        prompts.get("query") or default,
        prompts.get("document") or default,
    )


def _info(source: _Source, gate: Int8Gate) -> EmbedderInfo:
    return EmbedderInfo(
        dimension=source.dimension,
        pooling=source.pooling,
        normalise=True,
        max_tokens=source.max_tokens,
        pad_token_id=source.pad_token_id,
        query_prompt=source.query_prompt,
        document_prompt=source.document_prompt,
        int8=gate,
    )


class _PooledEncoder(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """(n, tokens) ids and mask to (n, dimension) unit rows, all in one graph."""

    def __init__(self, model: Any, pooling: Pooling, dimension: int) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.dimension = dimension
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options).last_hidden_state
        if self.pooling == "mean":
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        elif self.pooling == "cls":
            pooled = states[:, 0]
        else:
            last = (attention_mask.sum(1) - 1).reshape(-1, 1, 1).expand(-1, 1, states.shape[-1])
            pooled = states.gather(1, last).squeeze(1)
        if self.dimension < pooled.shape[-1]:
            pooled = pooled[:, : self.dimension]
        return pooled / pooled.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _export_graph(source: _Source, file: Path) -> None:
    # Three rows of seven and five tokens: sizes that the exporter cannot take for constants.
    mask = torch.tensor([[1] * 7, [1] * 7, [1] * 5 + [0] * 2])
    ids = torch.full_like(mask, source.pad_token_id + 1)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    tokens = torch.export.Dim("tokens", min=2, max=source.max_tokens)
    with torch.no_grad():
        program = torch.onnx.export(
            _PooledEncoder(source.model[0].auto_model, source.pooling, source.dimension).eval(),
            (ids, mask),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
        )
    save_graph(program.model_proto, file)


def save_graph(model: onnx.ModelProto, file: Path) -> None:
    """Without what differs between machines and runs: stack traces, source paths, versions of the tools."""
    clean = copy.deepcopy(model)
    clean.producer_name, clean.producer_version, clean.doc_string = "palate", "", ""
    for holder in (clean, clean.graph, *clean.graph.node, *clean.graph.initializer, *clean.graph.value_info):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    file.write_bytes(clean.SerializeToString(deterministic=True))


def _write_tokenizer(source: _Source, file: Path) -> None:
    """Without truncation and padding: both are the encoder's."""
    backend = getattr(source.model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportRefused("the model's tokenizer has no fast form (tokenizer.json), which serving needs")
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    file.write_text(plain.to_str(), encoding="utf-8")


def _write_torch(source: _Source, folder: Path) -> None:
    with quiet():
        source.model.save(str(folder), create_model_card=False, safe_serialization=True)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for its owner alone


def _encoder(source: _Source, folder: Path, model: Path) -> OnnxEncoder:
    return OnnxEncoder(
        model,
        folder / TOKENIZER_FILE,
        max_tokens=source.max_tokens,
        pad_token_id=source.pad_token_id,
        threads=len(os.sched_getaffinity(0)),
    )


def _both(source: _Source, encoder: OnnxEncoder) -> tuple[Encode, Encode]:
    return (
        lambda texts: encoder.encode([source.query_prompt + text for text in texts]),
        lambda texts: encoder.encode([source.document_prompt + text for text in texts]),
    )


def _compare(source: _Source, encoder: OnnxEncoder, texts: Sequence[str]) -> None:
    """Raises ExportRefused where the graph, its tokenizer or its pooling disagree with the model."""
    source.model.max_seq_length = source.max_tokens
    wanted = source.model.encode(list(texts), prompt="", normalize_embeddings=True, show_progress_bar=False)
    difference = np.abs(np.asarray(wanted, np.float32) - encoder.encode(texts)).max(axis=1)
    worst = int(np.argmax(difference))
    if not difference[worst] < MAX_ABS_DIFFERENCE:
        raise ExportRefused(
            f"the exported graph is off by {difference[worst]:.2g} on {texts[worst][:60]!r}; at most "
            f"{MAX_ABS_DIFFERENCE} is allowed: this architecture cannot be exported"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter and the quantiser warn about things that `_compare` and the gate check."""
    before, bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if bars:
            transformers_logging.enable_progress_bar()
