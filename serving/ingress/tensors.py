"""The Open Inference Protocol's JSON and what stands for it in ours: a tensor of texts in, tensors of results out.

`inference_v2` (the router) and `serving.kserve_model` (the container of an InferenceService) translate with it, so
both say the same. The query itself is always answered by the query route. Tensors may be JSON or, by the protocol's
binary extension, bytes behind the JSON.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from serving.errors import BadRequest, NotFound
from serving.ingress.models import parse

INPUT = "query"
PARAMETERS = ("top_k", "filters", "user", "session")
BINARY_OUTPUT = "binary_data_output"
SIZE_HEADER = "inference-header-content-length"
"""How many bytes of the body are JSON, where tensors follow it."""

OUTPUTS: Mapping[str, tuple[str, int]] = {
    "ids": ("BYTES", 2),
    "scores": ("FP32", 2),
    "fields": ("BYTES", 2),
    "abstained": ("BOOL", 1),
    "trace_ids": ("BYTES", 1),
    "answers": ("BYTES", 1),
}
"""Name -> datatype and number of dimensions. `ids`, `scores` and `fields` (JSON) are [texts, most results], rows with
fewer filled up with "" and 0; `answers`, the whole JSON answer of each text, comes only when asked for by name."""
DEFAULT_OUTPUTS = tuple(name for name in OUTPUTS if name != "answers")


class Tensor(NamedTuple):
    """`data` is flat, in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Input(_Part):
    datatype: str
    shape: list[int]
    data: list[Any] | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[_Input]
    outputs: list[_Part] = Field(default_factory=list)


class Inference(NamedTuple):
    """A request of the protocol. `outputs`: name -> whether as bytes behind the JSON."""

    id: str
    texts: list[str]
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool]


def read(body: bytes, json_bytes: str | None) -> Inference:
    """A request as it came; `json_bytes` is its SIZE_HEADER. Raises BadRequest that names the tensor or parameter."""
    size = len(body) if json_bytes is None else _size(json_bytes, len(body))
    wanted = parse(_Body, body[:size])
    tensors = [(i.name, i.datatype, i.shape, _data(i, body, size)) for i in wanted.inputs]
    default = bool(wanted.parameters.get(BINARY_OUTPUT, False))
    outputs = {part.name: bool(part.parameters.get("binary_data", default)) for part in wanted.outputs}
    return checked(wanted.id, tensors, wanted.parameters, outputs or dict.fromkeys(DEFAULT_OUTPUTS, default))


def checked(
    id_: str,
    inputs: Sequence[tuple[str, str, Sequence[int], Sequence[Any]]],
    parameters: Mapping[str, Any],
    outputs: Mapping[str, bool],
) -> Inference:
    """Inputs are (name, datatype, shape, flat data). Raises BadRequest that names the tensor or parameter."""
    if [name for name, *_ in inputs] != [INPUT]:
        raise BadRequest(f"send exactly one input, {INPUT!r}, not {[name for name, *_ in inputs]}", field="inputs")
    _, datatype, shape, data = inputs[0]
    texts = [_text(value) for value in _flat(data)]
    if datatype != "BYTES":
        raise BadRequest(f"input {INPUT!r} has datatype {datatype}: it must be BYTES, texts in UTF-8", field="inputs")
    if list(shape) not in ([len(texts)], [len(texts), 1]):
        raise BadRequest(f"input {INPUT!r} has shape {list(shape)}, but {len(texts)} texts", field="inputs")
    if unknown := sorted(set(parameters) - {*PARAMETERS, BINARY_OUTPUT}):
        raise BadRequest(f"there is no parameter {unknown[0]!r}; there are {list(PARAMETERS)}", field=unknown[0])
    if missing := sorted(set(outputs) - set(OUTPUTS)):
        raise BadRequest(f"there is no output {missing[0]!r}; there are {list(OUTPUTS)}", field="outputs")
    return Inference(id_, texts, parameters, outputs)


def query_body(wanted: Inference) -> bytes:
    """The same as a body of the query route. Raises BadRequest."""
    body: dict[str, Any] = {name: wanted.parameters[name] for name in PARAMETERS if name in wanted.parameters}
    filters = body.get("filters")
    if isinstance(filters, str):  # parameters are texts, numbers and booleans by the protocol
        try:
            body["filters"] = orjson.loads(filters)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"filters must be JSON, as a text: {error}", field="filters") from None
    return orjson.dumps({"queries": wanted.texts, **body})


def tensors(answer: Mapping[str, Any], names: Iterable[str]) -> list[Tensor]:
    """The outputs with these names, of what the query route answered."""
    answers = answer["answers"]
    columns = max((len(one["results"]) for one in answers), default=0)
    rows = [one["results"] + [None] * (columns - len(one["results"])) for one in answers]
    cells = [cell for row in rows for cell in row]
    data: dict[str, Iterable[Any]] = {
        "ids": ("" if cell is None else cell["id"] for cell in cells),
        "scores": (0.0 if cell is None else cell["score"] for cell in cells),
        "fields": ("" if cell is None else orjson.dumps(cell["fields"]).decode() for cell in cells),
        "abstained": (one["abstained"] for one in answers),
        "trace_ids": (one["trace_id"] for one in answers),
        "answers": (orjson.dumps(one).decode() for one in answers),
    }
    shape = [len(answers), columns]
    return [Tensor(name, OUTPUTS[name][0], shape[: OUTPUTS[name][1]], list(data[name])) for name in names]


def response(wanted: Inference, answer: Mapping[str, Any]) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON where bytes follow."""
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for tensor in tensors(answer, wanted.outputs):
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.outputs[tensor.name]:
            raw.append(_encoded(tensor))
            said["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            said["data"] = tensor.data
        outputs.append(said)
    body = {
        "id": wanted.id or answer["trace_id"],
        "model_name": answer["app"],
        "model_version": answer["release"],
        "parameters": {"trace_id": answer["trace_id"]},
        "outputs": outputs,
    }
    text = orjson.dumps(body)
    return b"".join([text, *raw]), len(text) if raw else None


def metadata(app: str, release: str) -> dict[str, Any]:
    """What the app takes and gives."""
    return {
        "name": app,
        "versions": [release],
        "platform": "palate",
        "inputs": inputs_taken(),
        "outputs": outputs_given(),
    }


def inputs_taken() -> list[dict[str, Any]]:
    return [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]


def outputs_given() -> list[dict[str, Any]]:
    return [{"name": name, "datatype": kind, "shape": [-1] * rank} for name, (kind, rank) in OUTPUTS.items()]


def check_app(app: str, named: str) -> None:
    """Raises NotFound where a container that has only `app` is asked for another."""
    if app != named:
        raise NotFound(f"there is no app {named!r} here; there is {app!r}", field="app")


def _size(text: str, length: int) -> int:
    if not text.isdecimal() or int(text) > length:
        raise BadRequest(f"{SIZE_HEADER} is {text!r}: it must be how many of the {length} bytes are JSON")
    return int(text)


def _data(tensor: _Input, body: bytes, offset: int) -> list[Any]:
    """Of its JSON, or of the bytes behind it: there is one input, so its bytes begin right there."""
    if tensor.data is not None:
        return tensor.data
    size = tensor.parameters.get("binary_data_size")
    raw = body[offset:]
    if not isinstance(size, int) or size != len(raw):
        raise BadRequest(
            f"input {tensor.name!r} has no `data`, and its binary_data_size ({size}) is not the {len(raw)} bytes "
            "that follow the JSON",
            field="inputs",
        )
    texts: list[Any] = []
    while raw:
        (length,) = struct.unpack_from("<I", raw.ljust(4, b"\xff"))
        if length > len(raw) - 4:
            raise BadRequest(
                f"input {tensor.name!r} ends within a text: a length in 4 bytes, then the text", field="inputs"
            )
        texts.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return texts


def _flat(data: Sequence[Any]) -> list[Any]:
    """JSON tensors may be nested by their shape."""
    return [inner for value in data for inner in (_flat(value) if isinstance(value, list) else [value])]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"input {INPUT!r} holds bytes that are no UTF-8", field="inputs") from None
    if not isinstance(value, str):
        raise BadRequest(f"input {INPUT!r} holds {value!r}: send texts", field="inputs")
    return value


def _encoded(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text)) + text for text in (value.encode() for value in tensor.data))
    return np.asarray(tensor.data, {"FP32": "<f4", "BOOL": "?"}[tensor.datatype]).tobytes()
