"""The files of Taste2Vec: an untrained encoder from the folder that app.yaml names, and any encoder as a component.

A component is also the model to train on: it holds the weights beside the graph. `training.index` calls
`export_taste` where it exports any other embedder; the trainer calls the rest. Here a fine-tuned coffee language model
would enter: there is none that works without a network, so the sentences are read by the embedder that `text` of
`encoder.yaml` names, frozen, and what is special about taste is learnt in the blocks above it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import Field, ValidationError

from serving.components.embedder import MODEL_FILES, EmbedderInfo, Precision
from serving.components.onnx_encoder import open_session
from serving.components.taste import (
    HEAD_FILE,
    INFO_FILE,
    TEXT_FOLDER,
    WEIGHTS_FILE,
    SenseReader,
    TasteInfo,
    TasteInputs,
)
from serving.schema import AppSpec, RecordSpec
from serving.schema.spec import Spec
from training.errors import ExportRefused, TrainingRefused
from training.export import MAX_ABS_DIFFERENCE, OPSET, export_embedder, quiet, save_graph
from training.models import ENCODER_FILE, MINILM
from training.taste2vec.encoder import DIMENSION, TasteEncoder, encode, tensors

MAX_BATCH = 65_536
FIRST_SEED = 0
"""Of the weights of an untrained encoder."""


class EncoderSpec(Spec):
    """`encoder.yaml`: the embedder of sentences (a folder beside it, or `minilm`), and the sensory vocabulary: group ->
    sense -> spellings in every language."""

    text: str = MINILM
    vocabulary: dict[str, dict[str, tuple[str, ...]]] = Field(min_length=1)


def export_taste(model: Path, folder: Path, spec: AppSpec, sample_texts: Sequence[str]) -> TasteInfo:
    """Write the component of `model` to the new `folder`: of a component, a copy; of a folder with `encoder.yaml`, the
    untrained encoder. Raises TrainingRefused, ExportRefused."""
    if not (model / INFO_FILE).is_file():
        return _build_untrained(model, folder, spec, sample_texts)
    info = TasteInfo.load(model)
    check_fits(info, spec)
    shutil.copytree(model, folder)
    return info


def check_fits(info: TasteInfo, spec: AppSpec) -> None:
    """Raises TrainingRefused where the encoder reads other records than app.yaml declares."""
    if spec.record is None or info.reads != spec.record:
        raise TrainingRefused(
            "the encoder was made for another `record` than app.yaml has now: train it with `start: base`"
        )


def load_encoder(folder: Path, info: TasteInfo) -> TasteEncoder:
    """With the component's weights, in evaluation mode."""
    spec = info.reads
    encoder = TasteEncoder(info.widths, SenseReader(info.vocabulary).groups, *_standard(spec))
    with np.load(folder / WEIGHTS_FILE) as weights:
        encoder.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    encoder.eval()
    return encoder


def write_component(encoder: TasteEncoder, info: TasteInfo, text: Path, folder: Path) -> None:
    """The complete component in the new `folder`; `text` is the component of the sentences' embedder. The same weights
    give the same files. Raises ExportRefused where the graph disagrees with the network."""
    folder.mkdir(parents=True)
    _copy_text(text, folder / TEXT_FOLDER)
    encoder = encoder.cpu().eval()
    np.savez(folder / WEIGHTS_FILE, **{name: value.numpy() for name, value in encoder.state_dict().items()})
    _export_graph(encoder, info, folder / HEAD_FILE)
    _compare(encoder, info, folder / HEAD_FILE)
    info.save(folder)


def _build_untrained(model: Path, folder: Path, spec: AppSpec, sample_texts: Sequence[str]) -> TasteInfo:
    about = _read_spec(model / ENCODER_FILE)
    if spec.record is None:
        raise TrainingRefused("app.yaml has no section `record`, which says what the encoder reads beside the text")
    named = MINILM if about.text == MINILM else model / about.text
    text = folder.with_name(f"{folder.name}.text")
    shutil.rmtree(text, ignore_errors=True)
    exported = export_embedder(named, text, sample_texts)
    vocabulary = {group: {s: list(words) for s, words in senses.items()} for group, senses in about.vocabulary.items()}
    info = TasteInfo(spec.record.model_dump(mode="json"), vocabulary, DIMENSION, exported.dimension)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FIRST_SEED)
        encoder = TasteEncoder(info.widths, SenseReader(info.vocabulary).groups, *_standard(spec.record))
    try:
        write_component(encoder, info, text, folder)
    finally:
        shutil.rmtree(text)
    return info


def _read_spec(file: Path) -> EncoderSpec:
    try:
        return EncoderSpec.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrainingRefused(f"{file.name} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingRefused(f"{file.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _standard(spec: RecordSpec) -> tuple[Any, Any]:
    """Mean and deviation of each metric, were it uniform in its range; what a training saw replaces them."""
    ranges = [(metric.min, metric.max) for metric in spec.metrics.values()] or [(-1.0, 1.0)]
    low, high = np.array(ranges, np.float32).T
    return (low + high) / 2, (high - low) / np.float32(np.sqrt(12))


def _copy_text(text: Path, folder: Path) -> None:
    """Without the weights that are not served: the encoder was trained on the vectors of one precision."""
    served = EmbedderInfo.load(text).resolve("auto")
    other: Precision = "float32" if served == "int8" else "int8"
    shutil.copytree(text, folder, ignore=shutil.ignore_patterns(MODEL_FILES[other]))


def _export_graph(encoder: TasteEncoder, info: TasteInfo, file: Path) -> None:
    example = tensors(TasteInputs.empty(3, info.widths))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            encoder,
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(TasteInputs._fields),
            output_names=["vectors"],
            dynamic_shapes=tuple({0: batch} for _ in example),
        )
    save_graph(program.model_proto, file)


def _compare(encoder: TasteEncoder, info: TasteInfo, file: Path) -> None:
    random = np.random.default_rng(0)
    empty = TasteInputs.empty(17, info.widths)
    drawn = TasteInputs(*(random.standard_normal(array.shape).astype(np.float32) for array in empty))
    there = random.random(drawn.metrics_there.shape) < 0.5, random.random(drawn.context_there.shape) < 0.5
    drawn = drawn._replace(metrics_there=there[0].astype(np.float32), context_there=there[1].astype(np.float32))
    session = open_session(file)
    for inputs in (empty, drawn, drawn.rows(slice(0, 1))):
        difference = float(np.abs(encode(encoder, inputs) - session.run(None, inputs._asdict())[0]).max())
        if not difference < MAX_ABS_DIFFERENCE:
            raise ExportRefused(
                f"the exported encoder is off by {difference:.2g}; at most {MAX_ABS_DIFFERENCE} is allowed"
            )
