"""`prompt.yaml`: what a language model is asked, as the templates of an app, and its last resort without a model.

    system: You recommend shops. Speak kindly.
    user: |
      {% for item in items %}
      {{ loop.index }}. {{ item.name }}, {{ item.price }} won
      {% endfor %}
      Question: {{ query }}
    template: "{% if items %}I found {{ items[0].name }}.{% else %}I found nothing.{% endif %}"
    checks: {grounded: {names: [name]}, length: {max_chars: 600}}
    forms:
      detailed: {system: Explain in full., max_tokens: 512}

Templates are Jinja2, sandboxed, and know `query`, `understood` (text, intent, entities, filters, confidence), `items`
(each with the item's fields, and `id`, `rank`, `score`), `history` (query, text, items), `form`; `repair` also knows
`reasons`. Whatever `system`, `user` and `repair` print is data: strings come out on one line, in quotes, without what a
chat template would take for its own marks; `{{ x | plain }}` leaves the quotes away, `{{ x | json }}` prints any value
as JSON. So what a user or an item says can lie, but it cannot end the data it stands in. `template` prints without
quotes: people read it.

`training.index` reads it (`Prompt.load`), so that a release with a bad prompt is never built; `generator` renders it.
No model and no effects here.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jinja2
import jsonschema
import orjson
import yaml
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jsonschema.protocols import Validator
from jsonschema.validators import SPECIFICATIONS
from pydantic import Field, ValidationError
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from serving.errors import BadRequest
from serving.ports import Message
from serving.schema.spec import Spec

PROMPT_FILE = "prompt.yaml"
SCHEMA_FILE = "schema.json"
VARIABLES = frozenset({"query", "understood", "items", "history", "form"})
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
REPAIR = "That answer cannot be used: {{ reasons | plain }} Answer the request again, without that fault."

FormName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


class FormSpec(Spec):
    """What is different in a named form of the answer; what is null is as it is without a form."""

    system: str | None = None
    user: str | None = None
    template: str | None = None
    repair: str | None = None
    checks: dict[str, dict[str, Any]] | None = None
    stop: tuple[str, ...] | None = None
    output_schema: str | None = Field(None, description="JSON schema file beside app.yaml.")
    max_tokens: int | None = Field(None, ge=1, le=8192)
    temperature: float | None = Field(None, ge=0, le=2)


class PromptSpec(Spec):
    """The keys of prompt.yaml. Bounds are in characters."""

    system: str = ""
    user: str = Field(min_length=1)
    template: str = Field("", description="The answer where the model has none that passes; empty: an error then.")
    repair: str = Field(REPAIR, description="Said after an answer that fails a check; empty: the same is asked again.")
    checks: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Options of the checks, by name.")
    stop: tuple[str, ...] = Field((), max_length=8)
    query_chars: int = Field(2000, ge=1)
    field_chars: int = Field(400, ge=1, description="Longer values of items and turns are cut.")
    history: int = Field(4, ge=0, le=100, description="Most turns of the session that are shown.")
    prompt_chars: int = Field(24_000, ge=100, description="Longer prompts lose old turns first, then the last items.")
    forms: dict[FormName, FormSpec] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a prompt is about, as plain values: everything that a template or a check may see."""

    query: str
    understood: Mapping[str, Any] = field(default_factory=dict)
    items: Sequence[Mapping[str, Any]] = ()
    history: Sequence[Mapping[str, Any]] = ()


class Plain(str):
    """Text that a template prints as it is: it was cleaned."""

    __slots__ = ()


# Control and direction characters; marks of chat templates (<|im_start|>, </s>, [INST]) lose their first character's
# neighbour, so that no tokenizer reads them as one token.
_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
_MARKS = re.compile(r"<(?=[|/\w\uff5c])|\[(?=/?(?:INST|SYS))")


def cleaned(text: str, most: int | None = None) -> str:
    """One line of visible text of at most `most` characters that no chat template mistakes for its own marks."""
    text = _MARKS.sub(lambda mark: mark.group() + " ", _CONTROL.sub(" ", text).strip())
    return text if most is None or len(text) <= most else text[:most].rstrip() + "…"


def _cleaned_value(value: Any) -> Any:
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, Mapping):
        return {cleaned(str(key)): _cleaned_value(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_cleaned_value(one) for one in value]
    return value


def _json(value: Any) -> Plain:
    return Plain(json.dumps(_cleaned_value(value), ensure_ascii=False, default=str))


def _plain(value: Any) -> Plain:
    if isinstance(value, jinja2.Undefined) or value is None:
        return Plain("")
    if isinstance(value, str):
        return Plain(cleaned(value))
    return _json(value) if isinstance(value, Mapping | Sequence) else Plain(str(value))


def _quoted(value: Any) -> Any:
    if isinstance(value, Plain | bool | int | float):
        return value
    return Plain("") if isinstance(value, jinja2.Undefined) or value is None else _json(value)


def _environment(printed: Any) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        finalize=printed, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"plain": _plain, "json": _json, "tojson": _json}
    return environment


_FOR_MODELS = _environment(_quoted)
_FOR_PEOPLE = _environment(lambda value: value if isinstance(value, Plain) else _plain(value))


def _compiled(source: str, where: str, environment: jinja2.Environment, more: frozenset[str]) -> jinja2.Template:
    """Raises BadRequest that names the template and what is wrong with it."""
    try:
        known = VARIABLES | more
        if unknown := sorted(meta.find_undeclared_variables(environment.parse(source)) - known):
            raise BadRequest(f"{PROMPT_FILE}: {where} uses {unknown}, but there are {sorted(known)}", field=where)
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BadRequest(f"{PROMPT_FILE}: {where} is no template: {error}", field=where) from None


class Form:
    """One form of the answer, compiled. `max_tokens` and `temperature` are None where app.yaml decides."""

    def __init__(self, name: str, prompt: PromptSpec, change: FormSpec, schema: Mapping[str, Any] | None) -> None:
        self.name = name
        own = prompt.model_copy(update=change.model_dump(exclude_none=True, exclude={"output_schema"}))
        at = f"forms.{name}." if name else ""
        self.schema = schema
        self.checks: Mapping[str, Mapping[str, Any]] = {**prompt.checks, **(change.checks or {})}
        self.stop = own.stop
        self.max_tokens = change.max_tokens
        self.temperature = change.temperature
        self._bounds = prompt
        none: frozenset[str] = frozenset()
        self._system = _compiled(own.system, f"{at}system", _FOR_MODELS, none)
        self._user = _compiled(own.user, f"{at}user", _FOR_MODELS, none)
        self._repair = _compiled(own.repair, f"{at}repair", _FOR_MODELS, frozenset({"reasons"}))
        self._template = _compiled(own.template, f"{at}template", _FOR_PEOPLE, none)
        self.repairs_by_words = bool(own.repair.strip())
        self.has_template = bool(own.template.strip())

    def with_schema(self, schema: Mapping[str, Any]) -> Form:
        """This form with another schema, that a request brought: the template, made for its own, is left away."""
        other = copy.copy(self)
        other.schema, other.has_template = schema, False
        return other

    def messages(self, facts: Facts) -> tuple[Message, ...]:
        """The prompt, within its bound. Raises BadRequest where not even the query fits."""
        turns, items = list(facts.history), list(facts.items)
        while True:
            shown = Facts(facts.query, facts.understood, items, turns)
            system, user = self._text(self._system, shown), self._text(self._user, shown)
            if len(system) + len(user) <= self._bounds.prompt_chars:
                break
            if turns:
                turns.pop(0)
            elif items:
                items.pop()
            else:
                raise BadRequest(
                    f"the prompt has {len(system) + len(user)} characters, at most {self._bounds.prompt_chars} are "
                    "taken: send a shorter query",
                    field="query",
                )
        return (Message("system", system), Message("user", user)) if system else (Message("user", user),)

    def repair(self, facts: Facts, messages: tuple[Message, ...], text: str, reasons: str) -> tuple[Message, ...]:
        """What to say after an answer that cannot be used: the fault, or, without words for it, the same again."""
        if not self.repairs_by_words:
            return messages
        said = self._text(self._repair, facts, reasons=reasons)
        return (*messages, Message("assistant", cleaned(text, 4000)), Message("user", said))

    def last_resort(self, facts: Facts) -> str:
        """The answer that needs no model; "" where the prompt has none."""
        return self._text(self._template, facts)

    def _text(self, template: jinja2.Template, facts: Facts, **more: Any) -> str:
        bounds = self._bounds
        turns = facts.history[max(0, len(facts.history) - bounds.history) :]
        variables = {
            "query": cleaned(facts.query, bounds.query_chars),
            "understood": _clipped(facts.understood, bounds.field_chars),
            "items": [_clipped(item, bounds.field_chars) for item in facts.items],
            "history": [_clipped(turn, bounds.field_chars) for turn in turns],
            "form": self.name,
        }
        try:
            return template.render(**variables, **more).strip()
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise BadRequest(f"{PROMPT_FILE} cannot be rendered for this query: {error}", field="generate") from error


def _clipped(value: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {key: cleaned(one, most) if isinstance(one, str) else one for key, one in value.items()}


class Prompt:
    """The forms of an app's answers; "" is the one without a name."""

    def __init__(self, spec: PromptSpec, schemas: Mapping[str, Mapping[str, Any] | None]) -> None:
        """`schemas`: form ("" too) -> the JSON schema of its answers, None or absent for plain text."""
        self.spec = spec
        changes = {"": FormSpec(), **spec.forms}
        default = schemas.get("")
        self._forms = {name: Form(name, spec, change, schemas.get(name, default)) for name, change in changes.items()}

    @property
    def forms(self) -> list[str]:
        return sorted(name for name in self._forms if name)

    def form(self, name: str) -> Form:
        """Raises BadRequest that says what there is."""
        if name not in self._forms:
            raise BadRequest(f"there is no form {name!r} of the answer; there are {self.forms}", field="generate")
        return self._forms[name]

    @classmethod
    def load(cls, folder: Path) -> Prompt:
        """The component `generate`: prompt.yaml, schema.json where app.yaml names one, and the schemas of forms under
        their own names. Raises BadRequest that names the key at fault."""
        spec = parse_prompt((folder / PROMPT_FILE).read_text(encoding="utf-8"))
        schemas: dict[str, Mapping[str, Any] | None] = {}
        if (folder / SCHEMA_FILE).is_file():
            schemas[""] = read_schema(folder / SCHEMA_FILE)
        for name, form in spec.forms.items():
            if form.output_schema is not None:
                schemas[name] = read_schema(folder / Path(form.output_schema).name) if form.output_schema else None
        return cls(spec, schemas)


def parse_prompt(text: str) -> PromptSpec:
    """Raises BadRequest that names the key."""
    try:
        return PromptSpec.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise BadRequest(f"{PROMPT_FILE} is not YAML: {error}", field=PROMPT_FILE) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{PROMPT_FILE}: {key or 'the document'}: {first['msg']}", field=key) from None


def read_schema(file: Path) -> Mapping[str, Any]:
    """Raises BadRequest for what is no JSON schema."""
    try:
        return checked_schema(orjson.loads(file.read_bytes()), file.name)
    except FileNotFoundError:
        raise BadRequest(f"there is no {file.name} beside {PROMPT_FILE}", field=file.name) from None
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{file.name} is not JSON: {error}", field=file.name) from None


def checked_schema(schema: Any, field_name: str) -> Mapping[str, Any]:
    """Raises BadRequest for what is no JSON schema, or refers to one elsewhere, or to a part that it lacks."""
    if not isinstance(schema, dict):
        raise BadRequest(f"{field_name} must be a JSON schema: an object", field=field_name)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        _check_references(schema, field_name)
    except jsonschema.SchemaError as error:
        raise BadRequest(f"{field_name} is no JSON schema: {error.message}", field=field_name) from None
    except RecursionError:
        raise BadRequest(f"{field_name} is nested too deep", field=field_name) from None
    return schema


def validator_of(schema: Mapping[str, Any]) -> Validator:
    """Fetches nothing: what the schema refers to and does not hold raises when it is come to."""
    return jsonschema.Draft202012Validator(schema, registry=SPECIFICATIONS)


def _check_references(schema: Mapping[str, Any], field_name: str) -> None:
    resource = DRAFT202012.create_resource(schema)
    base = resource.id() or ""
    registry = SPECIFICATIONS.with_resource(base, resource).crawl()  # once, not for each anchor
    for ref, resolver in _references(schema, registry.resolver(base)):
        if not ref.startswith("#"):
            raise BadRequest(f"{field_name} refers to {ref!r}: only references within it (#...) work", field=field_name)
        try:
            held = resolver.lookup(ref).contents
        except (Unresolvable, AttributeError, LookupError, TypeError, ValueError):  # the last: no schema on the way
            held = None
        if not isinstance(held, Mapping | bool):
            raise BadRequest(f"{field_name} refers to {ref!r}, but holds no schema there", field=field_name)


def _references(value: Any, resolver: Any) -> Iterator[tuple[str, Any]]:
    """Each with what it is looked up by: a part with an `$id` is a schema of its own."""
    if isinstance(value, Mapping):
        yield from ((value[key], resolver) for key in REFERENCES if isinstance(value.get(key), str))
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for part in parts:
        own = isinstance(part, Mapping) and isinstance(part.get("$id"), str)
        inner = resolver.in_subresource(DRAFT202012.create_resource(part)) if own else resolver
        yield from _references(part, inner)
