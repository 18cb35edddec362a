"""The check `grounded`: an answer names only what retrieval returned. Pure; called through `serving.generate.checks`.

Three kinds of claims are read out of a text:
- **names**: every item of the catalogue that the text names has to be among the results; and what ends like a name
  (`suffixes`) or stands in name quotes has to be written in them, or in the conversation.
- **numbers** with a unit (prices, discounts): each has to stand in a result. In a sentence that names results, in one
  of those; so the price of one shop said of another is refused.
- **words** that are only true of some items (a benefit), each with the field that says so.

What neither a catalogue nor its results know, an invented name without a telling form, passes: no check by rules can
see it. Names, numbers and words of the conversation may be said again, but a sentence that names results has its
numbers and words from those: else any price that was ever spoken of could be said of any shop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from serving.schema.spec import Spec

_QUOTED = re.compile(r"「([^」]{1,80})」|『([^』]{1,80})』|\*\*([^*]{1,80})\*\*")
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_AMOUNT = re.compile(rf"({_NUMBER})\s*만\s*(?:({_NUMBER})\s*천)?|({_NUMBER})\s*천(?![가-힣])|({_NUMBER})")
MIN_NAME_CHARS = 2


class GroundedOptions(Spec):
    """`checks.grounded` of prompt.yaml."""

    names: tuple[str, ...] = Field(("name",), description="Fields of an item that hold its names.")
    suffixes: tuple[str, ...] = Field((), description="Ends of words that make them names, like 치킨 or Bakery.")
    units: tuple[str, ...] = Field(("원", "won", "%", "퍼센트"), description="Numbers before these are claims.")
    words: dict[str, str] = Field(default_factory=dict, description="Word -> the field that has to be true for it.")
    paths: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="JSON answers: `notes.*.material` -> fields of items, one of whose values it has to be.",
    )
    unless: str = Field("", description="JSON answers: a true key of this name beside a value frees it.")


def folded(text: str) -> str:
    """For comparing: composed, without case, white space and punctuation."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


class Names:
    """The names of a catalogue's items, found in a text in time that goes with the text."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._by_start: dict[str, list[str]] = {}
        for name in {folded(name) for name in names}:
            if len(name) > MIN_NAME_CHARS:  # shorter ones are common words too often
                self._by_start.setdefault(name[:3], []).append(name)

    def within(self, text: str) -> list[str]:
        """The names, folded, that the folded `text` holds; of those at one place the longest."""
        found, at = [], 0
        while at < len(text) - 2:
            here = [name for name in self._by_start.get(text[at : at + 3], ()) if text.startswith(name, at)]
            if here:
                found.append(max(here, key=len))
            at += len(found[-1]) if here else 1
        return found


def ungrounded(
    text: str, items: Sequence[Mapping[str, Any]], context: str, names: Names, options: GroundedOptions
) -> list[str]:
    """What in `text` (one sentence, or several) has no ground, as short phrases; empty: all has."""
    said = folded(text)
    named = [item for item in items if any(name in said for name in _names(item, options))]
    meant, spoken = (named, "") if named else (items, context)
    return [
        *_wrong_names(text, items, context, names, options),
        *_wrong_numbers(text, meant, spoken, options.units),
        *_wrong_words(text, meant, spoken, options.words),
    ]


def ungrounded_data(data: Any, items: Sequence[Mapping[str, Any]], options: GroundedOptions) -> list[str]:
    """Values of a JSON answer, at the paths that `options` names, that are no values of the items' fields."""
    wrong = []
    for path, fields in options.paths.items():
        allowed = {folded(value) for item in items for name in fields for value in _texts(item.get(name))}
        for value, beside in at_path(data, path.split("."), None):
            free = options.unless and isinstance(beside, Mapping) and beside.get(options.unless)
            if isinstance(value, str) and folded(value) not in allowed and not free:
                wrong.append(f"{path}: {value!r} was not found")
    return wrong


def _names(item: Mapping[str, Any], options: GroundedOptions) -> list[str]:
    values = [folded(value) for name in options.names for value in _texts(item.get(name))]
    return [value for value in values if len(value) >= MIN_NAME_CHARS]


def _wrong_names(
    text: str, items: Sequence[Mapping[str, Any]], context: str, names: Names, options: GroundedOptions
) -> list[str]:
    own = [name for item in items for name in _names(item, options)]
    said = folded(text)
    for name in sorted(own, key=len, reverse=True):
        said = said.replace(name, "\0")  # a name within the name of a result is that result's
    others = names.within(said)
    spans = [next(filter(None, match.groups())) for match in _QUOTED.finditer(text)]
    for suffix in options.suffixes:
        spans += [match.group() for match in re.finditer(rf"\w+{re.escape(suffix)}", text)]
    if not others and not spans:
        return []
    told = folded(context)  # long, so only where it is needed
    wrong = [f"{name!r} was not found" for name in others if name not in told]
    written = folded(" ".join(value for item in items for value in _texts(list(item.values())))) + told
    return wrong + [f"{span!r} was not found" for span in dict.fromkeys(spans) if folded(span) not in written]


def _wrong_numbers(text: str, items: Sequence[Mapping[str, Any]], context: str, units: Sequence[str]) -> list[str]:
    if not units:
        return []
    unit = "|".join(re.escape(one) for one in sorted(units, key=len, reverse=True))
    claimed = [
        (amount, match.group()) for match in _AMOUNT.finditer(text) if re.match(rf"\s*(?:{unit})", text[match.end() :])
        for amount in [_amount(match)]
    ]  # fmt: skip
    if not claimed:
        return []
    known = {amount for item in items for value in item.values() for amount in _amounts(value)} | _amounts(context)
    return [f"the number {written.strip()} was not found" for amount, written in claimed if amount not in known]


def _wrong_words(text: str, items: Sequence[Mapping[str, Any]], context: str, words: Mapping[str, str]) -> list[str]:
    return [
        f"{word!r} is true of none of the results meant"
        for word, field in words.items()
        if word in text and word not in context and not any(item.get(field) for item in items)
    ]


def _amount(match: re.Match[str]) -> float:
    tens, thousands, alone, plain = (_float(group) if group else None for group in match.groups())
    if tens is not None:
        return round(tens * 10_000 + (thousands or 0.0) * 1000, 4)
    return round(alone * 1000, 4) if alone is not None else round(plain or 0.0, 4)


def _float(text: str) -> float:
    return float(text.replace(",", ""))


def _amounts(value: Any) -> set[float]:
    """Every number that a value is or holds."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int | float):
        # A ratio may be said as percent
        return {round(float(value), 4), round(float(value) * 100, 4)} if 0 < value < 1 else {round(float(value), 4)}
    return {_amount(match) for text in _texts(value) for match in _AMOUNT.finditer(text)}


def _texts(value: Any) -> list[str]:
    """Every text that a value is or holds."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, Sequence | set | frozenset):
        return [text for one in value for text in _texts(one)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def at_path(value: Any, path: Sequence[str], beside: Any) -> list[tuple[Any, Any]]:
    """(value, the object it stands in) of everything at a path; `*` is each entry of a list or an object."""
    if not path:
        return [(value, beside)]
    if path[0] == "*":
        entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        return [found for one in entries for found in at_path(one, path[1:], value)]
    return at_path(value[path[0]], path[1:], value) if isinstance(value, Mapping) and path[0] in value else []
