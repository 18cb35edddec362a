"""Intent, entities and filters by a language model, with the rules beside it.

The rules read every text first: where they are sure enough the model is not asked, what they found as it is spelled
stands, and they answer where the model is slow (`within_s`), away, wrong (its text does not hold the schema) or unsure
(it says little of what the rules found). `Understood.engine` says who answered. After a slow or absent answer the model
rests for a moment, so that an engine in trouble does not cost every query its time; not after a text that it refuses,
which says nothing of the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serving.errors import BadRequest, PalateError
from serving.generate.prompt import cleaned
from serving.logs import get_log
from serving.ports import LanguageModel, LanguageRequest
from serving.schema import Query, Turn, UnderstandSpec, Understood
from serving.understand.reading import Reading, understood
from serving.understand.rules_engine import LONGEST_TEXT, RulesEngine

log = get_log(__name__)

REST_S = 2.0
ENGINE = "llm"


class LlmEngine:
    """Satisfies `serving.pipeline.Understand`. `clock` gives monotonic seconds."""

    def __init__(
        self,
        rules: RulesEngine,
        model: LanguageModel,
        spec: UnderstandSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._lexicon = rules.lexicon
        self._model = model
        self._spec = spec
        self._clock = clock
        self._schema = self._lexicon.schema()
        self._rests_until = -REST_S

    async def __call__(self, queries: Sequence[Query]) -> list[list[Understood]]:
        """Every text is asked about at once: the engine batches them."""
        return [[one] for one in await asyncio.gather(*(self._understand(query) for query in queries))]

    async def _understand(self, query: Query) -> Understood:
        rules = self._rules.read(query.text)
        reading = rules
        if self._is_to_ask(rules):
            answer = await self._ask(query)
            reading = self._weigh(answer, rules) if answer else rules
        return understood(reading, query, self._lexicon)

    def _is_to_ask(self, rules: Reading) -> bool:
        sure = self._spec.ask_below < 1 and rules.confidence >= self._spec.ask_below
        return not sure and self._clock() >= self._rests_until

    async def _ask(self, query: Query) -> str:
        """What the model wrote; "" where it wrote nothing in time."""
        last = Turn(_read(query.history[-1].query), "") if query.history else None
        request = LanguageRequest(
            messages=self._lexicon.messages(_read(query.text), last),
            max_tokens=self._spec.max_tokens,
            schema=self._schema,
        )
        pieces: list[str] = []
        try:
            async with asyncio.timeout(self._spec.within_s):
                async for piece in self._model.stream(request, time.monotonic() + self._spec.within_s):
                    pieces.append(piece.text)
        except (TimeoutError, PalateError) as error:
            if not isinstance(error, BadRequest):
                self._rests_until = self._clock() + REST_S
            log.warning("understand.fallback", why="slow" if isinstance(error, TimeoutError) else repr(error))
            return ""
        return "".join(pieces)

    def _weigh(self, text: str, rules: Reading) -> Reading:
        """The model's reading, completed by what the rules found as it is spelled; the rules' own where it is wrong or
        unsure."""
        answer = self._lexicon.read_model_answer(text)
        if answer is None:
            log.warning("understand.fallback", why="wrong", said=text[:200])
            return rules
        intent, entities, relatives = answer
        agreement = _agreement(rules, intent, entities)
        if agreement < self._spec.agree_at_least:
            log.info("understand.fallback", why="unsure", agreement=round(agreement, 2))
            return rules
        exact = {kind: said for kind, said in rules.entities.items() if kind in rules.exact}
        return replace(
            rules,
            intent=rules.intent or intent,
            entities={**entities, **exact},
            relatives=tuple(dict.fromkeys([*rules.relatives, *relatives])),
            confidence=(agreement + max(rules.confidence, self._spec.agree_at_least)) / 2,
            engine=ENGINE,
        )


def _read(text: str) -> str:
    """What the rules read of a text, as one line without marks of chat templates."""
    return cleaned(text[:LONGEST_TEXT])


def _agreement(rules: Reading, intent: str, entities: Mapping[str, Any]) -> float:
    """The share of what the rules found that the model says too; 1 where they found nothing."""
    same = [entities.get(kind) == said for kind, said in rules.entities.items()]
    same += [rules.intent == intent] if rules.intent else []
    return sum(same) / len(same) if same else 1.0
