"""Writes the ranker component: the graph that serving runs, made of the weights by hand, and checked against torch.

The graph is a dozen standard operators, so it is built here and not by torch's exporter: the same weights give the same
bytes, and the weights keep their names, by which `weights_of` reads them back when a training goes on from what serves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serving.components.rank_features import FeatureEncoder, Features, FeatureSpec
from serving.components.ranker import MODEL_FILE, OnnxRanker, RankerInfo
from training.errors import ExportRefused
from training.wide_deep.model import WideDeep

OPSET = 20
IR_VERSION = 10
MAX_ABS_DIFFERENCE = 1e-5
CHECKED_ROWS = 512
LOGIT_ROWS = 16_384
PROTOBUF_LIMIT_BYTES = 2**31


def write_ranker(folder: Path, model: WideDeep, info: RankerInfo, sample: Features) -> OnnxRanker:
    """Replace `folder` by the component of `model`. Some rows of `sample` are scored by both. Raises ExportRefused."""
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    if size >= PROTOBUF_LIMIT_BYTES:
        raise ExportRefused(
            f"the ranker has {size} bytes of weights and an ONNX file holds {PROTOBUF_LIMIT_BYTES}: lower "
            "train.options.max_values, or raise min_count"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    info.save(folder)
    (folder / MODEL_FILE).write_bytes(_model_bytes(model, info))
    ranker = OnnxRanker(folder)
    rows = sample.take(slice(0, CHECKED_ROWS))
    wanted = 1 / (1 + np.exp(-(logits(model, info.features, rows) * info.scale + info.shift)))
    worst = float(np.abs(wanted - ranker.run(rows)).max(initial=0.0))
    if not worst <= MAX_ABS_DIFFERENCE:
        raise ExportRefused(f"the exported ranker is off by {worst:.2g}; at most {MAX_ABS_DIFFERENCE} is allowed")
    return ranker


def logits(model: WideDeep, spec: FeatureSpec, rows: Features) -> NDArray[np.float64]:
    """(n,) by torch, on the CPU, before calibration."""
    encoder = FeatureEncoder(spec)
    model.eval()
    parts: list[NDArray[np.float64]] = [np.empty(0)]
    with torch.no_grad():
        for start in range(0, len(rows.codes), LOGIT_ROWS):
            some = rows.take(slice(start, start + LOGIT_ROWS))
            inputs = (encoder.embedded(some.codes), np.array(some.numbers), encoder.wide(some.codes))
            parts.append(model(*map(torch.from_numpy, inputs)).double().numpy())
    return np.concatenate(parts)


def weights_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The weights in a ranker's graph, by their names in `WideDeep`."""
    graph = onnx.load(folder / MODEL_FILE).graph
    return {one.name: np.array(numpy_helper.to_array(one)) for one in graph.initializer if "." in one.name}


class _Graph:
    """Nodes, each named by its output, and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name


def _model_bytes(model: WideDeep, info: RankerInfo) -> bytes:
    spec = info.features
    graph = _Graph()
    for name, parameter in model.named_parameters():
        graph.constant(name, parameter.detach().cpu().numpy())
    last = _deep(graph, model, spec)
    if spec.crosses:
        weights = graph.add("Gather", ["wide.weight", "wide"], "wide_weights", axis=0)
        axes = graph.constant("wide_axes", np.array([1], np.int64))
        flat = graph.add("Squeeze", [weights, graph.constant("last_axis", np.array([2], np.int64))], "wide_flat")
        last = graph.add("Add", [last, graph.add("ReduceSum", [flat, axes], "wide_sum", keepdims=1)], "logits")
    scaled = graph.add("Mul", [last, graph.constant("scale", np.float32(info.scale))], "scaled")
    shifted = graph.add("Add", [scaled, graph.constant("shift", np.float32(info.shift))], "shifted")
    column = graph.add("Sigmoid", [shifted], "column")
    graph.add("Squeeze", [column, graph.constant("columns", np.array([1], np.int64))], "probabilities")
    inputs = [
        helper.make_tensor_value_info(name, kind, ["n", width])
        for name, kind, width in (
            ("codes", TensorProto.INT64, len(spec.embedded)),
            ("numbers", TensorProto.FLOAT, 2 * len(spec.numeric)),
            ("wide", TensorProto.INT64, len(spec.crosses)),
        )
        if width
    ]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n"])
    made = helper.make_model(
        helper.make_graph(graph.nodes, "wide_deep", inputs, [output], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="palate",
    )
    onnx.checker.check_model(made)
    serialised: bytes = made.SerializeToString(deterministic=True)
    return serialised


def _deep(graph: _Graph, model: WideDeep, spec: FeatureSpec) -> str:
    parts = []
    for i in range(len(spec.embedded)):
        index = graph.constant(f"column_{i}", np.array(i, np.int64))
        rows = graph.add("Gather", ["codes", index], f"rows_{i}", axis=1)
        parts.append(graph.add("Gather", [f"tables.{i}.weight", rows], f"embedded_{i}", axis=0))
    if spec.numeric:
        parts.append("numbers")
    last = graph.add("Concat", parts, "deep_input", axis=1)
    layers = [name.removesuffix(".weight") for name, _ in model.named_parameters() if name.startswith("deep.")]
    for i, layer in enumerate(name for name in layers if not name.endswith(".bias")):
        if i:
            last = graph.add("Relu", [last], f"hidden_{i}")
        last = graph.add("Gemm", [last, f"{layer}.weight", f"{layer}.bias"], f"linear_{i}", transB=1)
    return last
