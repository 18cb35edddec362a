"""What an answer has to pass before anybody reads it: pure functions by name, of the text or JSON and what it is about.

`generator` runs those that app.yaml names (`generate.checks`), with the options that prompt.yaml gives them:

    grounded   names only items, prices and benefits that retrieval returned: see `serving.generate.grounded`
    schema     the JSON satisfies the schema of its form
    length     {min_chars: 1, max_chars: 1000}; an answer that was cut off at its most tokens fails
    language   {is: ko | en | ja | zh, min_ratio: 0.5}: the share of its letters; without `is`, that of the query
    refusal    the answer does not refuse; {phrases: [...]} are added to those known
    figures    the JSON's numbers make their sums, within the limits of a table: see `serving.generate.figures`

An app brings its own under the entry point group `palate.checks` (name = "module:CHECK"), or calls `register`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from serving.errors import BadRequest
from serving.generate.figures import MOST_TOLD, FiguresOptions, figure_faults, mended
from serving.generate.grounded import GroundedOptions, Names, ungrounded, ungrounded_data
from serving.generate.prompt import validator_of
from serving.generate.sentences import sentences_of
from serving.schema.spec import Spec

GROUP = "palate.checks"


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, or a part of one, and what it is about. `data` is its JSON, None for words (and for what is none);
    `context` what was said, now and in the turns that are remembered; `names` those of the whole catalogue."""

    text: str
    data: Any = None
    items: Sequence[Mapping[str, Any]] = ()
    query: str = ""
    context: str = ""
    schema: Mapping[str, Any] | None = None
    finish_reason: str = "stop"
    names: Names = field(default_factory=Names)
    options: Mapping[str, Any] = field(default_factory=dict)


class CheckResult(NamedTuple):
    """`score` 0..1, 1 where there is nothing to find fault with; `reason` says what is wrong, "" where it passed."""

    name: str
    passed: bool
    score: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """`run` gives (score, reason); it passed where the reason is empty. `by_sentence`: each sentence has to pass on its
    own, so that an answer can be sent sentence by sentence. `options`: what prompt.yaml may say, None: anything. `mend`
    gives JSON data that pass in place of `data` that did not, where code can do so without the model, else None.
    `own_form`: it knows the app's own form of JSON, and is left out where a request brings another schema."""

    run: Callable[[Answered], tuple[float, str]]
    by_sentence: bool = False
    options: type[Spec] | None = None
    mend: Callable[[Answered], Any | None] | None = None
    own_form: bool = False


class LengthOptions(Spec):
    min_chars: int = Field(1, ge=0)
    max_chars: int | None = Field(None, ge=1)


class LanguageOptions(Spec):
    wanted: str = Field("", alias="is", pattern="^(ko|en|ja|zh)?$")
    min_ratio: float = Field(0.5, gt=0, le=1)


class RefusalOptions(Spec):
    phrases: tuple[str, ...] = ()


class NoOptions(Spec):
    """There is nothing to say."""


SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "ko": ("HANGUL",),
    "en": ("LATIN",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "zh": ("CJK",),
}
REFUSALS = (
    "도와드릴 수 없", "답변할 수 없", "답할 수 없", "알려드릴 수 없", "제공할 수 없", "대답할 수 없",
    "i cannot help", "i can't help", "i cannot assist", "i can't assist", "i'm unable to", "i am unable to",
    "i cannot answer", "i can't answer", "as an ai",
)  # fmt: skip


def _grounded(answered: Answered) -> tuple[float, str]:
    options = GroundedOptions.model_validate(answered.options)
    words = answered.data is None
    wrong = [] if words else ungrounded_data(answered.data, answered.items, options)
    for text in [answered.text] if words else _leaves(answered.data):
        for sentence in sentences_of(text):
            wrong += ungrounded(sentence, answered.items, answered.context, answered.names, options)
    wrong = list(dict.fromkeys(wrong))
    return (1 / (1 + len(wrong)), "; ".join(wrong[:3]))


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _leaves(one)]
    return [text for one in value for text in _leaves(one)] if isinstance(value, list) else []


def _schema(answered: Answered) -> tuple[float, str]:
    if answered.schema is None:
        return 1.0, ""
    if answered.data is None:
        return 0.0, "it is not JSON"
    try:
        errors = sorted(validator_of(answered.schema).iter_errors(answered.data), key=lambda e: e.json_path)
    except Exception as error:  # noqa: BLE001 - a client's schema may refer to itself without end, or to what is none
        return 0.0, f"the schema cannot be applied: {type(error).__name__}: {str(error)[:200]}"
    told = "; ".join(f"{error.json_path}: {error.message[:200]}" for error in errors[:3])
    return 1 / (1 + len(errors)), told


def _length(answered: Answered) -> tuple[float, str]:
    options = LengthOptions.model_validate(answered.options)
    size = len(answered.text.strip())
    if size < options.min_chars:
        return size / options.min_chars, f"it has {size} characters, at least {options.min_chars} are wanted"
    if options.max_chars is not None and size > options.max_chars:
        return options.max_chars / size, f"it has {size} characters, at most {options.max_chars} are wanted"
    return (0.5, "it was cut off at its most tokens") if answered.finish_reason == "length" else (1.0, "")


def _language(answered: Answered) -> tuple[float, str]:
    options = LanguageOptions.model_validate(answered.options)
    wanted = options.wanted or language_of(answered.query)
    shares = _shares(" ".join(_leaves(answered.data)) if answered.data is not None else answered.text)
    if not wanted or not shares:
        return 1.0, ""
    ratio = sum(share for script, share in shares.items() if script in SCRIPTS[wanted])
    return ratio, "" if ratio >= options.min_ratio else f"{ratio:.0%} of its letters are {wanted}"


def language_of(text: str) -> str:
    """The language that most letters of a text look like, "" where it has none."""
    shares = _shares(text)
    counted = {name: sum(shares.get(script, 0.0) for script in scripts) for name, scripts in SCRIPTS.items()}
    best = max(counted, key=lambda name: counted[name])
    return best if counted[best] > 0 else ""


def _shares(text: str) -> dict[str, float]:
    scripts = [unicodedata.name(c, "").split(" ", 1)[0] for c in text if c.isalpha()]
    return {script: scripts.count(script) / len(scripts) for script in set(scripts)}


def _refusal(answered: Answered) -> tuple[float, str]:
    options = RefusalOptions.model_validate(answered.options)
    text = " ".join(answered.text.casefold().replace("’", "'").split())
    found = [phrase for phrase in (*REFUSALS, *options.phrases) if phrase.casefold() in text]
    return (0.0, f"it refuses: {found[0]!r}") if found else (1.0, "")


def _figures(answered: Answered) -> tuple[float, str]:
    if answered.data is None:
        return 0.0, "it is not JSON"
    faults = figure_faults(answered.data, FiguresOptions.model_validate(answered.options))
    return 1 / (1 + len(faults)), "; ".join(faults[:MOST_TOLD])


def _mended(answered: Answered) -> Any | None:
    return mended(answered.data, FiguresOptions.model_validate(answered.options))


_CHECKS: dict[str, Check] = {
    "grounded": Check(_grounded, by_sentence=True, options=GroundedOptions),
    "schema": Check(_schema, options=NoOptions),
    "length": Check(_length, options=LengthOptions),
    "language": Check(_language, options=LanguageOptions),
    "refusal": Check(_refusal, by_sentence=True, options=RefusalOptions),
    "figures": Check(_figures, options=FiguresOptions, mend=_mended, own_form=True),
}


def register(name: str, check: Check) -> None:
    """Make a check known in this process. A name has one meaning: raises ValueError for one that is taken."""
    if _CHECKS.setdefault(name, check) is not check:
        raise ValueError(f"there is a check {name!r} already")


@lru_cache(maxsize=64)
def check_of(name: str) -> Check:
    """Raises BadRequest that says which checks there are."""
    if name in _CHECKS:
        return _CHECKS[name]
    brought = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in brought:
        there = sorted({*_CHECKS, *brought})
        raise BadRequest(f"there is no check {name!r} of answers; there are {there}", field="generate.checks")
    check = brought[name].load()
    if not isinstance(check, Check):
        raise BadRequest(f"check {name!r}: {brought[name].value} is no Check", field="generate.checks")
    return check


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises BadRequest for options that the check does not take."""
    known = check_of(name).options
    if known is None:
        return
    try:
        known.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(("checks", name, *(str(part) for part in first["loc"])))
        raise BadRequest(f"prompt.yaml: {key}: {first['msg']}", field=key) from None


def run(name: str, answered: Answered) -> CheckResult:
    score, reason = check_of(name).run(answered)
    return CheckResult(name, not reason, round(score, 4), reason)
