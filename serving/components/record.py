"""The structured part of a query or an item, and how it reaches an embedder: behind the text, in one string.

An embedder's input is one text. A record follows it as canonical JSON after a separator that no text may hold, so
caches, batches, Chroma and the calls between deployments carry records as they carry texts, and never mix two that
differ. `serving.ingress` checks records, `serving.retrieve` and index builds compose them, embedders that read records
take them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from serving.components.text import item_text
from serving.errors import BadRequest
from serving.schema import Item, RecordSpec
from serving.schema.record_spec import number_fault

SEPARATOR = "\x1e"
"""The record separator of ASCII."""

Record = Mapping[str, Any]


def compose(text: str, record: Record) -> str:
    """Text and record as one input; the same for the same values, whatever the order of their keys."""
    clean = text.replace(SEPARATOR, " ")
    return clean + SEPARATOR + orjson.dumps(_plain(record), option=orjson.OPT_SORT_KEYS).decode() if record else clean


def take_apart(value: str) -> tuple[str, Record]:
    """What `compose` put together. A text that it did not make has no record."""
    text, separator, rest = value.partition(SEPARATOR)
    if separator:
        try:
            record = orjson.loads(rest)
        except orjson.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            return text, record
    return value.replace(SEPARATOR, " "), {}


def item_input(item: Item, fields: Iterable[str], record_field: str | None) -> str:
    """What an embedder is given of an item: the text of `fields`, and the record where it reads one."""
    record = item.fields.get(record_field) if record_field else None
    return compose(item_text(item, fields), record if isinstance(record, Mapping) else {})


def check_record(record: Record, spec: RecordSpec | None, name: str = "record") -> None:
    """Raises BadRequest that names the field, as `record.metrics.acidity`."""
    if not record:
        return
    if spec is None:
        raise BadRequest(f"{name}: this app takes no records: its app.yaml has no section `record`", field=name)
    _fields(record, {**spec.fields, "metrics": None, "context": None}, name)
    for key in spec.fields:
        if record.get(key) is not None and (fault := spec.fields[key].fault(record[key])):
            raise BadRequest(f"{name}.{key} {fault}", field=f"{name}.{key}")
    metrics = _fields(record.get("metrics"), spec.metrics, f"{name}.metrics")
    for key, value in metrics.items():
        if value is not None and (fault := number_fault(value, spec.metrics[key].min, spec.metrics[key].max)):
            raise BadRequest(f"{name}.metrics.{key} {fault}", field=f"{name}.metrics.{key}")
    moments = record.get("context") or []
    if not isinstance(moments, list) or len(moments) > spec.max_context:
        raise BadRequest(f"{name}.context is a list of at most {spec.max_context} objects", field=f"{name}.context")
    for number, moment in enumerate(moments):
        where = f"{name}.context.{number}"
        for key, value in _fields(moment, spec.context, where).items():
            if value is not None and (fault := spec.context[key].fault(value)):
                raise BadRequest(f"{where}.{key} {fault}", field=f"{where}.{key}")


def _fields(value: Any, known: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest(f"{where} is an object, not {value!r}", field=where)
    for key in value:
        if key not in known:
            raise BadRequest(f"{where}.{key}: there is no such field; there are {sorted(known)}",
                             field=f"{where}.{key}")  # fmt: skip
    return value


def _plain(value: Any) -> Any:
    """Mappings as dicts, without what is null: a missing value and one that is left out are the same."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
