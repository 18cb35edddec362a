"""The text of an item that is embedded: the same for the index build and for items that change while serving."""

from __future__ import annotations

from collections.abc import Iterable

from serving.schema import Item


def item_text(item: Item, fields: Iterable[str]) -> str:
    """The named fields' values in order, each once, joined as sentences; fields that are missing or empty are left
    out."""
    parts: list[str] = []
    for name in fields:
        value = item.fields.get(name)
        text = "" if value is None else str(value).strip()
        if text and text not in parts:
            parts.append(text)
    return ". ".join(parts)
