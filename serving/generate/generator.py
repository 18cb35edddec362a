"""The phase generate: an answer in words, or as JSON, from what was found.

A `Generator` renders the prompt, asks the language model, runs the checks, tries again at most `repairs` times, and
has the prompt's template as its last resort. It knows one release: its prompt, its adapter. `serving.build` makes it,
`serving.router.ServedRelease` asks it, in the process that answers HTTP.

How much is sent before the end: JSON only as a whole. Words, where the caller streams, as they come; with checks that
judge sentences (`grounded`), sentence by sentence, each after it passed. What was sent cannot be taken back, so an
answer whose next sentence fails goes on with the template, and only one of which nothing was sent is tried again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from serving.errors import (
    DeadlineExceeded,
    Overloaded,
    PhaseFailed,
    ReplicaLost,
    StoreUnavailable,
)
from serving.generate import checks
from serving.generate.checks import Answered, CheckResult
from serving.generate.grounded import Names
from serving.generate.prompt import Facts, Form, Prompt
from serving.generate.sentences import Sentences
from serving.pipeline import Line
from serving.ports import LanguageModel, LanguageRequest, Message, Usage
from serving.schema import GenerateSpec, Query

NO_USAGE = Usage(0, 0)
FAULTS = (StoreUnavailable, Overloaded, DeadlineExceeded, ReplicaLost, PhaseFailed)
"""Of a language model, for which the template stands in."""
LEAST_REPAIR_TEMPERATURE = 0.4
"""Greedy, the same prompt would give the same answer again."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks of its answer; None: as the app says. `schema` replaces that of the form."""

    form: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Generated:
    """The whole answer, after its last piece. `data` is its JSON, None for words. `usage` counts every try. `checks`
    are those of the model's last try, `measures` those of its first (see `measures_of`). `repaired`: how many more
    tries it took; `fallback`: why the template stands in (in part), "" where it does not; `fault`: because the model
    failed, not its answer. `first_ms` is the time to
    the first text sent, `total_ms` the time of all, without what the reader took."""

    text: str
    data: Any = None
    usage: Usage = NO_USAGE
    finish_reason: str = "stop"
    checks: tuple[CheckResult, ...] = ()
    repaired: int = 0
    fallback: str = ""
    fault: bool = False
    form: str = ""
    adapter: str = ""
    model: str = ""
    first_ms: float = 0.0
    total_ms: float = 0.0
    measures: Mapping[str, float] = field(default_factory=dict)


Event = str | Generated
"""Texts, which together are the answer's text, and at the end the whole."""


class Generator:
    """Of one release. `longest_s` bounds a whole answer; `clock` gives seconds of `time.monotonic`."""

    def __init__(
        self,
        spec: GenerateSpec,
        prompt: Prompt,
        model: LanguageModel,
        adapter: str = "",
        names: Names | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`adapter`: its served name, "" for the base; `names`: those of the catalogue's items. Raises BadRequest for
        a check, or an option of one, that there is not."""
        self.spec = spec
        self.prompt = prompt
        self.model = model
        self.adapter = adapter
        self.names = names or Names()
        self.clock = clock
        check_prompt(spec, prompt)

    def answer(
        self, query: Query, lines: Sequence[Line], wish: Wish, deadline: float, *, last_resort: bool = True
    ) -> AsyncGenerator[Event, None]:
        """`deadline` in seconds of `clock`. Raises BadRequest for a form that there is not or a prompt that is too
        long; what the model raises, unless the prompt has a template and this is the `last_resort`, or some was sent
        already; PhaseFailed
        where no answer passed and there is no template. Closing the iterator ends the work in the engine."""
        form = self.prompt.form(wish.form)
        if wish.schema is not None:
            form = form.with_schema(wish.schema)
        return _Answering(self, form, facts_of(query, lines, self.spec.items), wish, deadline).events(last_resort)


def facts_of(query: Query, lines: Sequence[Line], items: int) -> Facts:
    """What a prompt may show: the first `items` results, line by line, and what was understood of the first line."""
    shown: dict[str, dict[str, Any]] = {}
    for line in lines:
        for candidate in line.result.candidates:
            if len(shown) < items and candidate.id not in shown:
                fields = orjson.loads(candidate.document)
                shown[candidate.id] = {
                    **fields, "id": candidate.id, "rank": len(shown) + 1, "score": round(candidate.score, 4)
                }  # fmt: skip
    first = lines[0].understood
    understood = {
        "text": first.query.text,
        "intent": first.intent,
        "entities": dict(first.entities),
        "filters": dict(first.query.filters),
        "confidence": round(first.confidence, 4),
    }
    history = [{"query": turn.query, "text": turn.text, "items": list(turn.items)} for turn in query.history]
    return Facts(query.text, understood, list(shown.values()), history)


def measures_of(results: Sequence[CheckResult], usage: Usage, seconds: tuple[float, float]) -> dict[str, float]:
    """What a first try says of a release, by name: `failed_<check>` 0 or 1, and the `tokens`, `first_token_ms` and
    `ms_per_token` of its text. `seconds`: to its first piece, and to its end."""
    measures = {f"failed_{result.name}": float(not result.passed) for result in results}
    first_s, all_s = seconds
    measures["first_token_ms"] = round(first_s * 1000, 3)
    if usage.completion_tokens:
        measures["tokens"] = float(usage.completion_tokens)
        measures["ms_per_token"] = round((all_s - first_s) * 1000 / max(1, usage.completion_tokens - 1), 4)
    return measures


class _Answering:
    """One answer on its way."""

    def __init__(self, generator: Generator, form: Form, facts: Facts, wish: Wish, deadline: float) -> None:
        self._by = generator
        self._form = form
        self._facts = facts
        self._wish = wish
        self._deadline = deadline
        self._structured = form.schema is not None
        names = list(dict.fromkeys(generator.spec.checks))
        if wish.schema is not None:
            names = [name for name in names if not checks.check_of(name).own_form]
        if self._structured and "schema" not in names:
            names.insert(0, "schema")
        self._names = names
        self._sentence_names = [name for name in names if checks.check_of(name).by_sentence]
        told = [facts.query, *(str(turn[key]) for turn in facts.history for key in ("query", "text"))]
        self._context = "\n".join(told)
        self._began = generator.clock()
        self._first_s: float | None = None
        self._idle_s = self._paused = 0.0
        self._sent = ""
        self._fault = False
        self._tries: list[_Try] = []

    async def events(self, last_resort: bool) -> AsyncGenerator[Event, None]:
        messages = first = self._form.messages(self._facts)
        fallback = ""
        try:
            for number in range(1 + self._by.spec.repairs):
                self._tries.append(_Try())
                async with aclosing(self._try(self._tries[-1], self._request(messages, number))) as texts:
                    async for text in texts:
                        yield self._send(text)
                        self._resume()
                failed = self._tries[-1].failed
                if not failed or self._sent:
                    break
                reasons = "; ".join(f"{result.name}: {result.reason}" for result in failed)
                messages = self._form.repair(self._facts, first, self._tries[-1].text, reasons)
            fallback = self._refused()
        except FAULTS as error:
            if not self._form.has_template or not (last_resort or self._sent):
                raise
            self._fault = True
            fallback = f"{type(error).__name__}: {error.detail}"
        data = self._tries[-1].data
        if fallback:
            text, data = self._last_resort(fallback)
            if text:
                yield self._send(f" {text}" if self._sent and not self._sent[-1].isspace() else text)
                self._resume()
        yield self._generated(data, fallback)

    def _send(self, text: str) -> str:
        now = self._by.clock()
        if self._first_s is None:
            self._first_s = now - self._began
        self._sent += text
        self._paused = now
        return text

    def _resume(self) -> None:
        self._idle_s += self._by.clock() - self._paused

    def _request(self, messages: tuple[Message, ...], number: int) -> LanguageRequest:
        spec, wish, form = self._by.spec, self._wish, self._form
        most = form.max_tokens or spec.max_tokens
        temperature = next(t for t in (wish.temperature, form.temperature, spec.temperature) if t is not None)
        return LanguageRequest(
            messages=messages,
            adapter=self._by.adapter,
            max_tokens=min(most, wish.max_tokens or most),
            temperature=max(temperature, LEAST_REPAIR_TEMPERATURE) if number else temperature,
            top_p=spec.top_p if wish.top_p is None else wish.top_p,
            stop=(*form.stop, *wish.stop),
            seed=None if wish.seed is None else wish.seed + number,
            schema=form.schema,
        )

    async def _try(self, one: _Try, request: LanguageRequest) -> AsyncGenerator[str, None]:
        """Fills `one`, and yields what of it may be sent: nothing that failed a check."""
        progressive = self._wish.stream and not self._structured
        gated = progressive and bool(self._sentence_names)
        sentences = Sentences()
        began = self._by.clock()
        idle_s = self._idle_s
        async with aclosing(self._by.model.stream(request, self._deadline)) as pieces:
            async for piece in pieces:
                one.add(piece.text, piece.finish_reason, piece.usage)
                if piece.text and one.first_s is None:
                    one.first_s = self._by.clock() - began
                ready = list(sentences.add(piece.text)) if gated else [piece.text] if progressive else []
                for text in ready:
                    if gated and self._fails(one, text):
                        break
                    if text := text if self._sent else text.lstrip():
                        yield text
                if one.failed:
                    break  # what follows may speak of what was refused
        rest = "" if one.failed else sentences.rest()
        if rest and not self._fails(one, rest):
            yield rest
        one.all_s = self._by.clock() - began - (self._idle_s - idle_s)
        if not one.failed:
            one.data = _parsed(one.text) if self._structured else None
            one.results = [checks.run(name, self._answered(name, one)) for name in self._names]
            if one.failed and self._mend(one):
                one.results = [checks.run(name, self._answered(name, one)) for name in self._names]
            if not progressive and not one.failed:
                yield one.text.strip()
        elif not self._sent:
            one.results += [
                checks.run(name, self._answered(name, one)) for name in self._names if name not in self._sentence_names
            ]

    def _mend(self, one: _Try) -> bool:
        """Whether code could put right what the checks found: then `one` has the JSON that it made."""
        for result in one.failed:
            mend = checks.check_of(result.name).mend
            data = mend(self._answered(result.name, one)) if mend is not None and one.data is not None else None
            if data is None:
                return False
            one.data, one.text, one.mended = data, orjson.dumps(data).decode(), True
        return True

    def _fails(self, one: _Try, sentence: str) -> bool:
        """Whether this sentence fails a check; the failures are `one`'s results."""
        if not sentence.strip():
            return False
        part = replace(one, text=sentence)
        one.results = [checks.run(name, self._answered(name, part)) for name in self._sentence_names]
        return bool(one.failed)

    def _answered(self, name: str, one: _Try) -> Answered:
        return Answered(
            text=one.text,
            data=one.data,
            items=self._facts.items,
            query=self._facts.query,
            context=self._context,
            schema=self._form.schema,
            finish_reason=one.finish_reason,
            names=self._by.names,
            options=self._form.checks.get(name, {}),
        )

    def _refused(self) -> str:
        """Why the model's last try cannot be the (whole) answer, "" where it can. Raises PhaseFailed where nothing can
        take its place."""
        failed = self._tries[-1].failed
        if not failed or (self._sent and all(result.name not in self._sentence_names for result in failed)):
            return ""
        reasons = "; ".join(f"{result.name}: {result.reason}" for result in failed)
        if not self._form.has_template and not self._sent:
            raise PhaseFailed(f"no answer passed the checks in {len(self._tries)} tries: {reasons}", phase="generate")
        return reasons

    def _last_resort(self, why: str) -> tuple[str, Any]:
        if not self._form.has_template:
            return "", None
        text = self._form.last_resort(self._facts)
        if not self._structured:
            return text, None
        data = _parsed(text)
        result = checks.run("schema", Answered(text, data, schema=self._form.schema))
        if not result.passed:
            raise PhaseFailed(f"{why}; and the template's JSON fails: {result.reason}", phase="generate")
        return text, data

    def _generated(self, data: Any, fallback: str) -> Generated:
        first, last = self._tries[0], self._tries[-1]
        measures = (
            measures_of(first.results, first.usage, (first.first_s or 0.0, first.all_s))
            if first.finish_reason or first.results
            else {}
        )
        usage = Usage(
            sum(one.usage.prompt_tokens for one in self._tries), sum(one.usage.completion_tokens for one in self._tries)
        )
        return Generated(
            text=self._sent,
            data=data,
            usage=usage,
            finish_reason="stop" if fallback else last.finish_reason or "stop",
            checks=tuple(last.results),
            repaired=len(self._tries) - 1,
            fallback=fallback,
            fault=self._fault,
            form=self._form.name,
            adapter=self._by.adapter,
            model=self._by.model.model,
            first_ms=round((self._first_s or 0.0) * 1000, 3),
            total_ms=round((self._by.clock() - self._began - self._idle_s) * 1000, 3),
            measures={
                **measures,
                "fallback": float(bool(fallback)),
                "repaired": float(len(self._tries) > 1 or last.mended),
            },
        )


@dataclass(slots=True)
class _Try:
    """One try of the model. Times in seconds from its beginning; `first_s` None until it said something."""

    text: str = ""
    data: Any = None
    finish_reason: str = ""
    usage: Usage = NO_USAGE
    first_s: float | None = None
    all_s: float = 0.0
    results: list[CheckResult] = field(default_factory=list)
    mended: bool = False

    @property
    def failed(self) -> list[CheckResult]:
        return [result for result in self.results if not result.passed]

    def add(self, text: str, finish_reason: str, usage: Usage | None) -> None:
        self.text += text
        self.finish_reason = finish_reason or self.finish_reason
        self.usage = usage or self.usage


def _parsed(text: str) -> Any:
    """The JSON of a text; None where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def check_prompt(spec: GenerateSpec, prompt: Prompt) -> None:
    """Raises BadRequest for a check, or an option of one, that there is not. Called where a release is built, too."""
    for name in ("", *prompt.forms):
        options = prompt.form(name).checks
        for check in {*spec.checks, *options}:
            checks.check_options(check, options.get(check, {}))
