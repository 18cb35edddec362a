"""fragrance-lab: recipes that can be mixed, scores that tell good from bad, and files that follow from lab.yaml."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from serving.components.catalogue import validate_attributes
from serving.generate.checks import Answered
from serving.generate.checks import run as run_check
from serving.generate.figures import FiguresOptions, figure_faults, fitted, mended
from serving.generate.generator import check_prompt
from serving.generate.prompt import Facts, Prompt
from serving.schema import Item, load_app_spec
from tests.example_modules import example_modules

EXAMPLE = Path(__file__).parents[2] / "examples" / "fragrance-lab"
MODULES = ("perfumery", "quality", "lab")


@pytest.fixture(scope="module")
def own() -> Iterator[SimpleNamespace]:
    with example_modules(EXAMPLE.name, *MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def lab(own: SimpleNamespace) -> Any:
    return own.perfumery.load_lab()


@pytest.fixture(scope="module")
def options(own: SimpleNamespace, lab: Any) -> FiguresOptions:
    return FiguresOptions.model_validate(own.lab.figures(lab))


def entries(**percents: int) -> list[dict[str, Any]]:
    return [{"material": name.replace("_", "-"), "percent": percent} for name, percent in percents.items()]


def good() -> dict[str, Any]:
    """Citrus and green with wood, as a brief for a fresh summer perfume asks for."""
    return {
        "name": "Sunlit Walk",
        "top": entries(bergamot=20, galbanum=10),
        "middle": entries(neroli=15, fig_leaf=20),
        "base": entries(cedar=20, vetiver=15),
    }


BRIEF = "a fresh perfume for a summer morning"


# ---- Briefs and recipes


@pytest.mark.parametrize(
    ("text", "families", "notes"),
    [
        (BRIEF, {"citrus", "green"}, ()),
        ("여름 아침에 쓸 상큼한 향수", {"citrus", "green"}, ()),
        ("smoky perfume with vanilla", {"smoky", "gourmand"}, ("vanilla",)),
        ("백단향 들어간 포근한 향", {"woody", "musk", "gourmand"}, ("sandalwood",)),
        ("a freshly pressed one", set(), ()),
    ],
)
def test_a_brief_is_read_by_its_words(text: str, families: set[str], notes: Any, own: Any, lab: Any) -> None:
    brief = own.perfumery.read_brief(text, lab)
    assert (set(brief.families), brief.notes) == (families, notes)


@pytest.mark.parametrize("form", ["basic", "detailed", "premium"])
def test_composed_recipes_pass_every_check(form: str, own: Any, lab: Any, options: FiguresOptions) -> None:
    rng = random.Random(3)
    schema = json.loads((EXAMPLE / f"{form}.json").read_text())
    for _ in range(50):
        brief = own.perfumery.read_brief(own.perfumery.make_brief(rng, lab), lab)
        recipe = own.perfumery.compose(brief, form, lab, own.perfumery.Taste(0.8), rng)
        jsonschema.validate(recipe, schema)
        assert figure_faults(recipe, options) == []
        scores = own.quality.score(recipe, brief, form, lab)
        assert (scores.structure, scores.feasibility) == (1.0, 1.0)


def test_care_and_customers_choice_show_in_coherence(own: Any, lab: Any) -> None:
    def coherence(liked: bool) -> float:
        lines = list(own.lab.instructions(lab, 60, 1, liked))
        found = []
        for line in lines:
            text = line["messages"][-2]["content"].split("Brief: ")[1].split("\n")[0]
            form = line["slice"].removeprefix("recipe-")
            brief = own.perfumery.read_brief(text, lab)
            found.append(own.quality.score(json.loads(line["messages"][-1]["content"]), brief, form, lab).coherence)
        return sum(found) / len(found)

    assert coherence(True) > coherence(False) + 0.05


def test_held_out_briefs_are_never_taught(own: Any, lab: Any) -> None:
    for held_out in (True, False):
        for line in own.lab.instructions(lab, 20, 1, False, held_out):
            text = line["messages"][-2]["content"].split("Brief: ")[1].split("\n")[0]
            assert own.lab.is_held_out(text) is held_out


# ---- Quality


def scores(recipe: Any, own: Any, lab: Any, known: Any = ()) -> Any:
    return own.quality.score(recipe, own.perfumery.read_brief(BRIEF, lab), "basic", lab, known)


def test_a_good_recipe_scores_high_in_everything(own: Any, lab: Any) -> None:
    found = scores(good(), own, lab)
    assert (found.structure, found.feasibility) == (1.0, 1.0)
    assert found.coherence > 0.8
    assert found.creativity > 0.8


BAD = {
    "structure": [
        ("a layer is missing", {"base": []}),
        ("a note twice", {"middle": entries(neroli=15) + entries(neroli=20)}),
        ("notes in the wrong layer", {"top": entries(cedar=20, vetiver=10)}),
        ("no name", {"name": " "}),
    ],
    "feasibility": [
        ("the sum is 80", {"base": entries(cedar=10, vetiver=5)}),
        ("over the limit", {"top": entries(bergamot=30, galbanum=20), "base": entries(cedar=10, vetiver=5)}),
        ("unknown notes", {"top": entries(moon_dust=20, star_light=10)}),
        ("no whole percent", {"base": [dict(entry, percent=17.5) for entry in good()["base"]]}),
    ],
    "coherence": [
        ("smoke and sugar", {"middle": entries(cocoa=15, honey=20), "base": entries(oud=10, leather=25)}),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("of", "change"), [(of, change) for of, all_ in BAD.items() for _, change in all_])
def test_what_is_bad_costs_the_score_that_it_is_about(of: str, change: dict[str, Any], own: Any, lab: Any) -> None:
    better, worse = scores(good(), own, lab), scores({**good(), **change}, own, lab)
    assert getattr(worse, of) < getattr(better, of) - 0.05


def test_a_material_that_is_marked_as_a_substitute_counts_as_there(own: Any, lab: Any) -> None:
    plain = {**good(), "top": [{"material": "moon-dust", "percent": 20}, *entries(galbanum=10)]}
    marked = {**plain, "top": [{"material": "moon-dust", "percent": 20, "substitute": True}, *entries(galbanum=10)]}
    assert scores(marked, own, lab).feasibility == 1.0 > scores(plain, own, lab).feasibility


def test_a_copy_is_not_creative_and_the_same_again_not_diverse(own: Any, lab: Any) -> None:
    copied = scores(good(), own, lab, [own.quality.percents(good())])
    assert copied.creativity < scores(good(), own, lab).creativity - 0.3
    assert own.quality.diversity([good(), good()]) == 0.0
    other = {**good(), "top": entries(mint=10, basil=20), "middle": entries(sage=20, geranium=15)}
    assert own.quality.diversity([good(), other]) > 0.5


@pytest.mark.parametrize("nonsense", [None, [], "recipe", {}, {"top": "bergamot"}, {"top": [1, {"material": 3}]}])
def test_what_is_no_recipe_scores_nothing(nonsense: Any, own: Any, lab: Any) -> None:
    assert scores(nonsense, own, lab) == own.quality.Scores(0.0, 0.0, 0.0, 0.0)


def test_every_score_lies_between_0_and_1(own: Any, lab: Any) -> None:
    rng = random.Random(0)
    for _ in range(200):
        wild = {
            layer: [{"material": rng.choice([*lab.notes, "x"]), "percent": rng.randint(-50, 150)} for _ in range(3)]
            for layer in ("top", "middle", "base")
        }
        found = scores(wild, own, lab)
        assert all(0.0 <= getattr(found, name) <= 1.0 for name in type(found).__slots__)


# ---- The check `figures`


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"base": entries(cedar=10, vetiver=5)}, "the sum of"),
        ({"top": entries(galbanum=20, bergamot=10)}, "percent of galbanum is 20, allowed are 1 to 10"),
        ({"top": entries(cedar=20, bergamot=10)}, "material 'cedar' is not known"),
        ({"middle": entries(neroli=15) + entries(neroli=20)}, "'neroli' stands there 2 times"),
        ({"top": [{"material": "bergamot", "percent": "much"}, *entries(galbanum=10)]}, "not all numbers"),
    ],
)
def test_figures_say_what_does_not_fit(change: dict[str, Any], why: str, options: FiguresOptions) -> None:
    assert figure_faults(good(), options) == []
    assert any(why in fault for fault in figure_faults({**good(), **change}, options))


def test_sums_are_mended_within_the_limits_and_nothing_else_is(options: FiguresOptions) -> None:
    off = {**good(), "base": entries(cedar=30, vetiver=25), "top": entries(bergamot=20, galbanum=40)}
    found = mended(off, options)
    assert found is not None
    assert figure_faults(found, options) == []
    assert [e["material"] for e in found["top"]] == ["bergamot", "galbanum"]
    assert off["top"][1]["percent"] == 40, "what is given stays as it is"
    assert mended({**good(), "top": entries(cedar=20, bergamot=10)}, options) is None
    assert mended({**good(), "middle": entries(neroli=15) + entries(neroli=20)}, options) is None


@pytest.mark.parametrize("seed", range(20))
def test_fitted_values_make_the_sum_within_their_bounds(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 9)
    most = [rng.randint(1, 40) for _ in range(count)]
    values = [rng.randint(0, 60) for _ in range(count)]
    found = fitted(values, 100, [1] * count, most)
    if sum(most) < 100:
        assert found is None
    else:
        assert found is not None
        assert sum(found) == 100
        assert all(1 <= value <= limit for value, limit in zip(found, most, strict=True))


def test_the_generator_can_mend_through_the_check(own: Any, lab: Any) -> None:
    answered = Answered("", {**good(), "base": entries(cedar=10, vetiver=5)}, options=own.lab.figures(lab))
    result = run_check("figures", answered)
    assert not result.passed
    assert "the sum of" in result.reason
    assert 0 < result.score < 1


# ---- Files


def test_what_is_written_from_lab_yaml_is_up_to_date(own: Any, lab: Any) -> None:
    for form in ("basic", "detailed", "premium"):
        assert json.loads((EXAMPLE / f"{form}.json").read_text()) == own.lab.schema(form, lab), "run lab.py write"
    prompt = yaml.safe_load((EXAMPLE / "prompt.yaml").read_text(encoding="utf-8"))
    assert prompt["checks"]["figures"] == own.lab.figures(lab), "run lab.py write"


def test_the_app_is_valid_and_its_prompt_shows_what_was_found(own: Any, lab: Any) -> None:
    spec = load_app_spec(EXAMPLE)
    prompt = Prompt.load(EXAMPLE)
    assert spec.generate is not None
    assert spec.generate.items == own.lab.SHOWN
    check_prompt(spec.generate, prompt)
    asked = prompt.form("premium").messages(Facts(BRIEF, items=[{"card": "rose: middle, floral, up to 25"}]))
    assert asked[-1].content == f"- rose: middle, floral, up to 25\nBrief: {BRIEF}\nForm: premium"


def test_the_catalogue_fits_app_yaml_and_is_always_the_same(own: Any, lab: Any) -> None:
    kinds = load_app_spec(EXAMPLE).items.attributes
    items = list(own.lab.items(lab))
    for item in items:
        validate_attributes(Item(item["id"], item["fields"], item["attributes"]), kinds)
    assert len({item["id"] for item in items}) == len(items)
    assert {item["attributes"]["collection"] for item in items} == {"note", "accord", "recipe"}
    assert items == list(own.lab.items(own.perfumery.load_lab()))
