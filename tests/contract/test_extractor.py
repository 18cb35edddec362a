"""What every extractor holds to, with a model or without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel, ConfigDict

from tests.openai_server import openai_server
from training.batch.ask import Asker
from training.batch.connect import server_model
from training.extract.model import ModelExtractor
from training.extract.ports import Extraction, Extractor, Form
from training.extract.rules import KeywordRules


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    who: list[str]
    when: list[str]
    why: list[str]


FORM = Form("keywords", "List keywords as JSON.", Answer)
LEXICON = {"who": {"men": ["my husband"]}, "when": {"night": ["before bed"]}, "why": {"frizz": ["flyaways"]}}
TEXTS = ["My husband loves it", "", "   \n", "flyaways are gone before bed", "레이크 \x00 é \u2028 😀", "x" * 50_000]


@pytest.fixture(params=["rules", "model"])
async def extractor(request: pytest.FixtureRequest) -> AsyncIterator[Extractor]:
    rules = KeywordRules(FORM, LEXICON)
    if request.param == "rules":
        yield rules
        return
    with openai_server() as server:
        async with server_model(server.url, "tiny") as model:
            yield ModelExtractor(FORM, Asker(model, 4), rules)


async def all_of(extractor: Extractor, texts: list[str]) -> list[Extraction]:
    return list(await asyncio.gather(*(extractor.extract(text) for text in texts)))


async def test_any_text_gets_one_answer_that_fits_the_form(extractor: Extractor) -> None:
    found = await all_of(extractor, TEXTS)
    assert len(found) == len(TEXTS)
    for extraction in found:
        assert Answer.model_validate(extraction.values).model_dump() == extraction.values
        json.dumps(extraction.values)


async def test_the_same_texts_get_the_same_answers_in_any_order(extractor: Extractor) -> None:
    forwards, backwards = await all_of(extractor, TEXTS), await all_of(extractor, TEXTS[::-1])
    assert forwards == backwards[::-1]


async def test_its_identity_is_json_and_changes_the_fingerprint(extractor: Extractor) -> None:
    identity = json.loads(json.dumps(dict(extractor.identity)))
    assert FORM.fingerprint(identity) == extractor.form.fingerprint(extractor.identity)
    assert FORM.fingerprint(identity) != FORM.fingerprint({**identity, "other": 1})
    assert extractor.at_once >= 1
