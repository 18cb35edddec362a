"""One answer on its way: tries, time, and what stands in for a model. The route's side is in `test_ingress_answers`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from serving.errors import BadRequest, DeadlineExceeded, PhaseFailed, ReplicaLost, StoreUnavailable
from serving.fakes import FakeLanguageModel, Scripted
from serving.generate.generator import Generated, Generator, Wish, check_prompt, facts_of
from serving.generate.grounded import Names
from serving.generate.prompt import Prompt, parse_prompt
from serving.pipeline import Line
from serving.schema import Candidate, GenerateSpec, Query, Result, Turn, Understood
from tests.told import CARD, GOOD, KNOWN, MADE_UP, PROMPT, SHOPS, told_prompt

BARE = "\n".join(line for line in PROMPT.splitlines() if not line.startswith("template"))


def found(*ids: str) -> list[Line]:
    query = Query("치킨집 추천해줘")
    shops = [Candidate(i, 0.5, "lexical", {}, orjson.dumps(SHOPS[i])) for i in ids or SHOPS]
    return [Line(Understood(query, query.text), Result(shops))]


async def answer(
    model: FakeLanguageModel, wish: Wish | None = None, prompt: str = PROMPT, left_s: float = 10.0, **how: Any
) -> tuple[list[str], Generated]:
    """The texts as they came, and the whole."""
    spec = GenerateSpec(prompt="prompt.yaml", checks=how.pop("checks", ("grounded", "length")), max_tokens=50)
    generator = Generator(spec, told_prompt(prompt), model, names=Names(KNOWN))
    query = how.pop("query", Query("치킨집 추천해줘"))
    events = generator.answer(query, found(), wish or Wish(), time.monotonic() + left_s, **how)
    seen = [event async for event in events]
    assert isinstance(seen[-1], Generated)
    texts = [event for event in seen if isinstance(event, str)]
    assert "".join(texts) == seen[-1].text
    return texts, seen[-1]


async def test_the_request_says_what_the_app_and_the_wish_say() -> None:
    model = FakeLanguageModel([GOOD])
    await answer(model, Wish(max_tokens=900, temperature=0.9, stop=("@",), seed=7))
    asked = model.asked[0]
    assert (asked.max_tokens, asked.temperature, asked.stop, asked.seed) == (50, 0.9, ("@",), 7)
    await answer(model, Wish(max_tokens=5))
    assert (model.asked[1].max_tokens, model.asked[1].temperature, model.asked[1].schema) == (5, 0.3, None)


async def test_a_try_after_the_first_is_another_one() -> None:
    model = FakeLanguageModel([MADE_UP, GOOD])
    _, told = await answer(model, Wish(seed=7, temperature=0.0))
    first, second = model.asked
    assert (first.seed, second.seed) == (7, 8)
    assert second.temperature > first.temperature
    assert second.messages[:2] == first.messages
    assert told.measures["failed_grounded"] == 1  # of the first try: what the release is like
    assert all(check.passed for check in told.checks)  # of the last: what is said


async def test_a_prompt_without_words_for_repair_is_asked_again_as_it_is() -> None:
    model = FakeLanguageModel([MADE_UP, GOOD])
    await answer(model, prompt=PROMPT + 'repair: ""\n')
    assert model.asked[0].messages == model.asked[1].messages


async def test_nothing_that_failed_is_sent_without_a_template() -> None:
    with pytest.raises(PhaseFailed, match="3 tries"):
        await answer(FakeLanguageModel([MADE_UP]), prompt=BARE)
    texts, told = await answer(FakeLanguageModel([f"{GOOD} {MADE_UP}"]), Wish(stream=True), BARE)
    assert "".join(texts).strip() == GOOD  # what came before stays, and there is nothing to go on with
    assert told.fallback


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_after_a_first_try_that_failed_leaves_the_template(stream: bool) -> None:
    script: Sequence[Scripted] = [MADE_UP, StoreUnavailable("the engine starts")]
    _, told = await answer(FakeLanguageModel(script), Wish(stream=stream))
    assert told.text == "행복치킨은 9000원이에요."
    assert (told.fault, told.measures["fallback"]) == (True, 1)


async def test_a_fault_is_raised_where_another_release_can_answer() -> None:
    with pytest.raises(ReplicaLost):
        await answer(FakeLanguageModel([ReplicaLost("gone")]), last_resort=False)
    _, told = await answer(FakeLanguageModel([GOOD], dies_after=3), Wish(stream=True), last_resort=False)
    assert told.text == "행복치킨을 추천해요. 행복치킨은 9000원이에요."  # some was sent already


async def test_time_that_runs_out_leaves_the_template_or_is_said() -> None:
    _, told = await answer(FakeLanguageModel([GOOD], piece_s=5.0), left_s=0.1)
    assert told.fallback.startswith("DeadlineExceeded")
    with pytest.raises(DeadlineExceeded):
        await answer(FakeLanguageModel([GOOD], piece_s=5.0), prompt=BARE, left_s=0.1)


async def test_a_schema_of_the_request_replaces_the_forms() -> None:
    model = FakeLanguageModel(['{"n": "x"}', '{"n": 1}'])
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    texts, told = await answer(model, Wish(schema=schema, stream=True))
    assert (texts, told.data, told.repaired) == (['{"n": 1}'], {"n": 1}, 1)
    with pytest.raises(PhaseFailed, match="schema"):  # the app's template would not fit
        await answer(FakeLanguageModel(["no"]), Wish(schema=schema))


async def test_a_schema_of_the_request_leaves_out_checks_of_the_apps_own_form() -> None:
    figures = "checks: {figures: {sums: [{at: [parts.*.percent], is: 100}]}, "
    model = FakeLanguageModel(['{"parts": [{"percent": 1}]}'])
    how: dict[str, Any] = {"prompt": PROMPT.replace("checks: {", figures), "checks": ("schema", "figures", "grounded")}
    _, told = await answer(model, Wish(schema={"type": "object"}), **how)
    assert [check.name for check in told.checks] == ["schema", "grounded"]
    assert (told.repaired, told.data) == (0, {"parts": [{"percent": 1}]})
    _, told = await answer(model, Wish(form="card"), **how)
    assert "figures" in told.fallback  # its own form is held to them


async def test_the_template_of_a_form_with_a_schema_is_held_to_it() -> None:
    _, told = await answer(FakeLanguageModel(["no"]), Wish(form="card"))
    assert told.data == {"name": "행복치킨"}
    broken = PROMPT.replace('{"name":', '{"shop":')
    with pytest.raises(PhaseFailed, match="template"):
        await answer(FakeLanguageModel(["no"]), Wish(form="card"), broken)
    assert CARD["required"] == ["name"]


async def test_closing_ends_the_work() -> None:
    model = FakeLanguageModel([GOOD * 20], piece_s=0.01)
    spec = GenerateSpec(prompt="prompt.yaml")
    generator = Generator(spec, told_prompt(), model)
    events = generator.answer(Query("치킨"), found(), Wish(stream=True), time.monotonic() + 10)
    assert await anext(events)
    assert model.running == 1
    await events.aclose()
    assert (model.running, model.cancelled) == (0, 1)
    reading = asyncio.create_task(answer(model))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert model.running == 0


async def test_times_leave_out_what_the_reader_took() -> None:
    now = [0.0]
    spec = GenerateSpec(prompt="prompt.yaml")
    generator = Generator(spec, told_prompt(), FakeLanguageModel([GOOD]), clock=lambda: now[0])
    pieces = 0
    async for event in generator.answer(Query("치킨"), found(), Wish(stream=True), time.monotonic() + 10):
        if isinstance(event, str):
            pieces += 1
            now[0] += 1.0
        else:
            assert (pieces, event.total_ms, event.measures["ms_per_token"]) == (5, 0.0, 0.0)


def test_what_a_prompt_shows() -> None:
    lines = [*found("S1"), *found("S2", "S1")]
    query = Query("치킨", history=(Turn("분식?", "달빛분식이요.", ("S2",)),))
    facts = facts_of(query, lines, 5)
    assert [(item["id"], item["rank"], item["name"]) for item in facts.items] == [
        ("S1", 1, "행복치킨"),
        ("S2", 2, "달빛분식"),
    ]
    assert facts.history == [{"query": "분식?", "text": "달빛분식이요.", "items": ["S2"]}]
    assert len(facts_of(query, lines, 1).items) == 1


def test_a_release_that_could_not_answer_is_refused() -> None:
    prompt = Prompt(parse_prompt("user: x\nchecks: {length: {max: 3}}"), {})
    with pytest.raises(BadRequest, match=r"checks\.length\.max"):
        check_prompt(GenerateSpec(prompt="p"), prompt)
    with pytest.raises(BadRequest, match="grounded"):
        check_prompt(GenerateSpec(prompt="p", checks=("ground",)), told_prompt())
