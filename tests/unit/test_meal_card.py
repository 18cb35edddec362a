"""examples/meal-card: its made-up world, its lexicon on the utterances it is measured by, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from serving.components.lexicon import Lexicon, read_lexicon
from serving.generate.prompt import Facts, Prompt
from serving.schema import AppSpec, Item, Query, find_app, load_app_spec
from serving.understand.rules_engine import RulesEngine
from serving.understand.turns import turn_of
from tests.example_modules import example_modules
from training.dataset.example import parse_example
from training.parts import Parts
from training.trainers import checked_options, find_trainer

FOLDER = find_app("meal-card")


@pytest.fixture(scope="module")
def spec() -> AppSpec:
    return load_app_spec(FOLDER)


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    with example_modules(FOLDER.name, "made_up", "meal_card") as found:
        yield found.made_up, found.meal_card


@pytest.fixture(scope="module")
def engine() -> RulesEngine:
    return RulesEngine(Lexicon(read_lexicon(FOLDER / "lexicon.yaml")))


def test_the_app_fits_together(spec: AppSpec, tmp_path: Path) -> None:
    Lexicon(read_lexicon(FOLDER / spec.understand.lexicon)).check(spec)
    for name, train in spec.train.items():
        checked_options(name, train, find_trainer(train.trainer))
    built = Parts(spec, FOLDER, tmp_path, lambda: pytest.fail("no funnel is built here")).build()
    assert [(part.name, part.role) for part in built] == [("understand", "lexicon"), ("generate", "prompt")]
    assert spec.rollout.steps_percent[0] == 10
    assert spec.rollout.guards.error is not None


def test_the_world_follows_from_its_seed(modules: tuple[ModuleType, ModuleType], spec: AppSpec) -> None:
    made_up, meal_card = modules
    world = made_up.World(7)
    items = list(meal_card.items(world))
    assert items == list(meal_card.items(made_up.World(7)))
    assert items != list(meal_card.items(made_up.World(8)))
    assert len({item["fields"]["name"] for item in items}) == len(items)
    for item in items:
        assert set(item["attributes"]) == set(spec.items.attributes)
        assert item["fields"]["meal_card"] == ("급식카드" in item["fields"]["features"])


def test_nothing_is_learnt_from_the_days_that_judge(modules: tuple[ModuleType, ModuleType]) -> None:
    made_up, meal_card = modules
    world = made_up.World(7)
    split_s = made_up.FIRST_DAY_S + made_up.TEST_DAY * 86_400
    done = list(meal_card.interactions(world))
    shown = [parse_example(json.dumps(one), "x") for one in meal_card.examples(world)]
    assert max(one["at_s"] for one in done) < split_s
    assert max(one.at_s for one in shown) < split_s
    assert min(session.at_s for session in world.sessions(made_up.TEST_DAY, made_up.DAYS)) >= split_s
    assert {one["event"] for one in done} == {"click", "order"}
    assert 0.1 < np.mean([one.label for one in shown]) < 0.5


def test_a_user_wants_what_is_near_and_what_the_card_pays(modules: tuple[ModuleType, ModuleType]) -> None:
    made_up, _ = modules
    world = made_up.World(7)
    for user in (0, 100, 299):
        glad = world.accepts(user, "lunch")
        assert glad[world.city_of_shop != world.city_of_user[user]].max() < 1e-6
    holders = np.flatnonzero(world.has_card)
    here = world.city_of_shop == world.city_of_user[holders[0]]
    glad = world.accepts(int(holders[0]), "lunch")[here]
    assert glad[world.takes_card[here]].mean() > glad[~world.takes_card[here]].mean()


def test_cases_accept_what_was_asked_for(modules: tuple[ModuleType, ModuleType], engine: RulesEngine) -> None:
    made_up, meal_card = modules
    world = made_up.World(7)
    items = {item["id"]: Item(item["id"], item["fields"], item["attributes"]) for item in world.items}
    for case in meal_card.cases(world, 7):
        filters = engine.understand([Query(case["query"])])[0][0].query.filters
        right = [i for i, item in items.items() if all(_passes(item.attributes[k], v) for k, v in filters.items())]
        assert right == case["accept"], case["query"]


def _passes(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return bool(value <= wanted["lte"])
    return bool(value == wanted)


def test_the_rules_read_what_people_say(engine: RulesEngine) -> None:
    lines = [json.loads(line) for line in (FOLDER / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]
    read = [engine.understand([Query(line["text"])])[0][0] for line in lines]
    intents = [one.intent == line["intent"] for one, line in zip(read, lines, strict=True)]
    entities = [dict(one.entities) == line["entities"] for one, line in zip(read, lines, strict=True)]
    assert np.mean(intents) >= 0.95
    assert np.mean(entities) >= 0.95


def test_a_conversation_goes_on(engine: RulesEngine) -> None:
    first = engine.understand([Query("급식카드 되는 치킨집 추천해줘")])[0][0]
    turn = turn_of(first, "", ["MC0001", "MC0002"], 0.0)
    cheaper = engine.understand([Query("더 싼 데는?", history=(turn,))])[0][0]
    assert cheaper.query.filters == {
        "meal_card": True, "category": "치킨", "price": {"lt": {"least_of": ["MC0001", "MC0002"]}},
    }  # fmt: skip


def test_it_can_answer_without_a_model(modules: tuple[ModuleType, ModuleType], tmp_path: Path, spec: AppSpec) -> None:
    made_up, _ = modules
    parts = Parts(spec, FOLDER, tmp_path, lambda: pytest.fail("no funnel is built here"))
    parts.build()
    form = Prompt.load(tmp_path / "generate").form("")
    shops = [item["fields"] for item in made_up.World(7).items[:3]]
    said = form.last_resort(Facts("치킨", {"intent": "recommend"}, shops))
    assert all(shop["name"] in said for shop in shops)
    assert said.count("급식카드 돼!") == sum(shop["meal_card"] for shop in shops)
    assert "안녕" in form.last_resort(Facts("안녕", {"intent": "greeting"}, shops))
    assert "못 찾았어" in form.last_resort(Facts("치킨", {"intent": "recommend"}, []))
