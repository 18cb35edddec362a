"""The lexicon component: the words an app's users say, what they mean, and which filters follow from them.

An app writes it as YAML (`understand.lexicon`); `training.index` checks it against the spec and puts it into the
component `understand`, from which `serving.understand` reads it. What a language model is asked is made of it too, so
that training can make examples of exactly that (`messages`, `schema`).

Entities are kept in one form everywhere, in `Understood.entities` and in what a session remembers: kind -> a value, a
list of values, `{"not": [values]}`, or for amounts a range as in filters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from serving.errors import BadRequest, PhaseFailed
from serving.ports import Message
from serving.schema import AppSpec, Turn
from serving.schema.spec import Spec

FILE = "lexicon.yaml"
NONE = "none"
MOST_AMOUNT = 100_000_000
Word = Annotated[str, Field(min_length=1, max_length=64)]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Entities = Mapping[str, Any]


class IntentSpec(Spec):
    """What a user wants. `patterns` are regular expressions that are looked for in the lower-case text."""

    patterns: tuple[str, ...] = ()
    description: str = ""

    @field_validator("patterns")
    @classmethod
    def _compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _compiled(value)


class ValueSpec(Spec):
    """One value of an entity. `filter` takes the place of {attribute: value}; `text` is the word that retrieval gets,
    by default the value itself, "" for none."""

    spellings: tuple[Word, ...] = ()
    filter: dict[str, Any] | None = None
    text: str | None = None


class EntitySpec(Spec):
    """A kind of thing that is named. With `attribute` its values are those of an item's attribute, and filter on it;
    with `prefer` results that have it come first, and nothing is left out."""

    description: str = ""
    attribute: str = ""
    prefer: bool = False
    values: dict[str, ValueSpec] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_spellings(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("values"), dict):
            values = {str(k): {"spellings": v} if isinstance(v, list) else v for k, v in raw["values"].items()}
            return {**raw, "values": values}
        return raw


class AmountSpec(Spec):
    """An amount that limits a number attribute. `units`: how it is written after the number -> what it is worth."""

    attribute: str
    units: dict[Word, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    description: str = ""


class RelativeSpec(Spec):
    """`더 싼`: results whose `amount` is below (or above) that of everything that was shown before."""

    amount: Kind
    than: Literal["less", "more"]
    words: tuple[Word, ...] = Field(min_length=1)


class LexiconSpec(Spec):
    """`follow_up`: patterns that mark an utterance which goes on from the last one; `fillers`: words without a meaning
    of their own; `default_intent` where none matches."""

    intents: dict[Kind, IntentSpec] = Field(min_length=1)
    default_intent: Kind
    entities: dict[Kind, EntitySpec] = Field(default_factory=dict)
    amounts: dict[Kind, AmountSpec] = Field(default_factory=dict)
    relative: dict[Kind, RelativeSpec] = Field(default_factory=dict)
    follow_up: tuple[str, ...] = ()
    fillers: tuple[Word, ...] = ()

    @field_validator("follow_up")
    @classmethod
    def _compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _compiled(value)

    @model_validator(mode="after")
    def _names_fit(self) -> LexiconSpec:
        if self.default_intent not in self.intents:
            raise ValueError(f"default_intent is {self.default_intent!r}, but intents are {sorted(self.intents)}")
        if twice := sorted(set(self.entities) & set(self.amounts)):
            raise ValueError(f"{twice[0]!r} is an entity and an amount: give one of them another name")
        for name, relative in self.relative.items():
            if relative.amount not in self.amounts:
                raise ValueError(f"relative.{name}.amount is {relative.amount!r}, but amounts are {list(self.amounts)}")
        return self


class Lexicon:
    """A lexicon at work. Immutable."""

    def __init__(self, spec: LexiconSpec) -> None:
        self.spec = spec

    @classmethod
    def load(cls, folder: Path) -> Lexicon:
        """Raises PhaseFailed where the component's folder holds none that this version can read."""
        try:
            return cls(read_lexicon(folder / FILE))
        except BadRequest as error:
            raise PhaseFailed(error.detail, phase="understand") from error

    @cached_property
    def spellings(self) -> dict[str, list[tuple[str, str]]]:
        """Spelling -> the (kind, value) it may stand for; a value is a spelling of itself."""
        found: dict[str, list[tuple[str, str]]] = {}
        for kind, entity in self.spec.entities.items():
            for value, one in entity.values.items():
                for spelling in dict.fromkeys((value, *one.spellings)):
                    found.setdefault(spelling, []).append((kind, value))
        return found

    def filters(self, entities: Entities, *, prefer: bool = False) -> dict[str, Any]:
        """What follows from entities for items: what they have to be, or, with `prefer`, had better be."""
        found: dict[str, Any] = {}
        for kind, said in entities.items():
            if (entity := self.spec.entities.get(kind)) is not None and entity.prefer == prefer:
                for name, wanted in _of_values(entity, said).items():
                    found[name] = _both(found.get(name), wanted)
            elif (amount := self.spec.amounts.get(kind)) is not None and not prefer and isinstance(said, Mapping):
                found[amount.attribute] = _both(found.get(amount.attribute), dict(said))
        return found

    def words(self, entities: Entities, spelled: Mapping[tuple[str, str], str] | None = None) -> list[str]:
        """The entities in words, for retrieval. `spelled`: (kind, value) -> how it was named, which may say more than
        the value does (떡볶이 is 분식); a longer form of the value itself (치킨집) does not."""
        words: list[str] = []
        for kind, said in entities.items():
            known = self.spec.entities[kind].values if kind in self.spec.entities else {}
            for value in values_of(said) if known else ():
                word = (spelled or {}).get((kind, value), value)
                own = known[value].text if value in known else None
                text = own if own is not None else value if value in word else word
                words += [text] if text else []
        return words

    def check(self, spec: AppSpec) -> None:
        """Raises BadRequest where it speaks of attributes that items do not have."""
        kinds = spec.items.attributes
        named: list[tuple[str, str]] = []
        for kind, entity in self.spec.entities.items():
            named += [(f"entities.{kind}.attribute", entity.attribute)] if entity.attribute else []
            for value, one in entity.values.items():
                named += [(f"entities.{kind}.values.{value}.filter", name) for name in one.filter or ()]
        named += [(f"amounts.{kind}.attribute", amount.attribute) for kind, amount in self.spec.amounts.items()]
        for where, name in named:
            if name not in kinds:
                raise BadRequest(f"lexicon: {where} names {name!r}, but items have {sorted(kinds)}", field=where)
        for kind, amount in self.spec.amounts.items():
            if kinds[amount.attribute] != "number":
                raise BadRequest(f"lexicon: amounts.{kind} limits {amount.attribute!r}, which is no number",
                                 field=f"amounts.{kind}.attribute")  # fmt: skip

    def schema(self) -> dict[str, Any]:
        """The JSON schema of what a language model says of one utterance; `read_model_answer` reads it."""
        properties: dict[str, Any] = {"intent": {"enum": sorted(self.spec.intents)}}
        for kind, entity in self.spec.entities.items():
            properties[kind] = {"enum": [NONE, *entity.values]}
        number = {"type": "integer", "minimum": 0, "maximum": MOST_AMOUNT}
        for kind in self.spec.amounts:
            properties |= {f"{kind}_min": number, f"{kind}_max": number}
        if self.spec.relative:
            properties["relative"] = {"enum": [NONE, *self.spec.relative]}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def messages(self, text: str, last: Turn | None) -> tuple[Message, ...]:
        """What a language model is asked about `text`; `last` is the turn before it. The instruction is the same for
        every text, so that an engine that caches prefixes reads it once."""
        lines = ["Read the user's message and fill in the JSON object. 0 and none: not said."]
        lines += [f"intent {name}: {one.description or name}" for name, one in sorted(self.spec.intents.items())]
        for kind, entity in self.spec.entities.items():
            lines.append(f"{kind}{_about(entity.description)}: {', '.join([*entity.values, NONE])}")
        lines += [f"{kind}_min, {kind}_max{_about(one.description)}" for kind, one in self.spec.amounts.items()]
        if self.spec.relative:
            lines.append(f"relative: {', '.join([*self.spec.relative, NONE])}")
        asked = [] if last is None else [f"before: {last.query}"]
        return Message("system", "\n".join(lines)), Message("user", "\n".join([*asked, text]))

    def read_model_answer(self, text: str) -> tuple[str, dict[str, Any], list[str]] | None:
        """(intent, entities, relatives) of what a model wrote; None where it does not hold `schema`."""
        try:
            raw = json.loads(text)
        except ValueError:
            return None
        properties = self.schema()["properties"]
        if not isinstance(raw, dict) or set(raw) != set(properties):
            return None
        for key, rule in properties.items():
            value = raw[key]
            number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_AMOUNT
            if (value not in rule["enum"]) if "enum" in rule else not number:
                return None
        entities: dict[str, Any] = {kind: raw[kind] for kind in self.spec.entities if raw[kind] != NONE}
        for kind in self.spec.amounts:
            bounds = {op: raw[f"{kind}_{end}"] for op, end in (("gte", "min"), ("lte", "max")) if raw[f"{kind}_{end}"]}
            entities |= {kind: bounds} if bounds else {}
        relative = raw.get("relative", NONE)
        return raw["intent"], entities, [] if relative == NONE else [relative]


def read_lexicon(path: Path) -> LexiconSpec:
    """Raises BadRequest that names the file and the key."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return LexiconSpec.model_validate(raw)
    except FileNotFoundError:
        raise BadRequest(f"there is no lexicon {path}", field="understand.lexicon") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is not YAML: {error}", field="understand.lexicon") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the document"
        raise BadRequest(f"{path}: {key}: {first['msg']}", field=key) from None


def build_lexicon(folder: Path, source: Path, spec: AppSpec) -> None:
    """Write the component into `folder`. Raises BadRequest for a lexicon that does not fit the app."""
    Lexicon(read_lexicon(source)).check(spec)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / FILE)


def values_of(said: Any) -> list[str]:
    """The values an entity names; none for amounts and for what it rules out."""
    if isinstance(said, str):
        return [said]
    return [value for value in said if isinstance(value, str)] if isinstance(said, list | tuple) else []


def _of_values(entity: EntitySpec, said: Any) -> dict[str, Any]:
    if isinstance(said, Mapping):
        gone = set(values_of(said.get("not")))
        return {entity.attribute: [v for v in entity.values if v not in gone]} if entity.attribute and gone else {}
    found: dict[str, Any] = {}
    plain: list[str] = []
    for value in values_of(said):
        own = entity.values[value].filter if value in entity.values else None
        if own is not None:
            found |= own
        elif entity.attribute:
            plain.append(value)
    if plain:
        found[entity.attribute] = plain[0] if len(plain) == 1 else plain
    return found


def _both(one: Any, other: Any) -> Any:
    """Two wishes about one attribute: ranges are joined, of anything else the later counts."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {**one, **other}
    return other


def _about(description: str) -> str:
    return f" ({description})" if description else ""


def _compiled(patterns: Iterable[str]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return tuple(patterns)
