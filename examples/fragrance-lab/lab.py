"""fragrance-lab's own command: everything it has is made up, by rule and by seed, from lab.yaml.

    lab.py items                                            the catalogue: notes, accords and recipes
    lab.py instructions [--count N] [--seed N] [--liked]    briefs with recipes: what a language model is taught
    lab.py cases [--count N]                                evaluation cases of the search
    lab.py write                                            prompt.yaml's tables and the JSON schemas, from lab.yaml

`--liked`: the recipes that customers chose of several (the adapter learns from them); without it, the lab's everyday
ones, composed with less care (the tiny model learns from them). Prompts are rendered by what serves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from perfumery import (
    CONCENTRATIONS,
    FORMS,
    LAYERS,
    Brief,
    Lab,
    Note,
    Taste,
    compose,
    fit,
    load_lab,
    make_brief,
    read_brief,
)
from quality import score

from serving.generate.prompt import Facts, Prompt

HERE = Path(__file__).parent
RECIPES = 60
EVERYDAY, CAREFUL = 0.85, 1.0
OF = 6
"""Customers choose the best of so many recipes."""
HELD_OUT = 10
"""One brief of so many is for tests: no instruction shows it."""
SHOWN = 8
"""Items that a prompt shows: `generate.items` of app.yaml."""


# ---- The catalogue


def items(lab: Lab) -> Iterator[dict[str, Any]]:
    for note in lab.notes.values():
        fields = {
            "name": note.id.replace("-", " "),
            "name_ko": note.ko,
            "about": _asked_by([note.family], lab, 0),
            "about_ko": _asked_by([note.family], lab, 1),
            "card": f"{note.id}: {note.layer}, {note.family}, up to {note.most}",
        }
        attributes = {"collection": "note", "layer": note.layer, "family": note.family, "price": note.price}
        yield {"id": note.id, "fields": fields, "attributes": attributes}
    for name, (korean, made_of) in lab.accords.items():
        fields = {"name": name.replace("-", " "), "name_ko": korean, "card": f"accord {name}: {', '.join(made_of)}"}
        yield _composed(f"accord-{name}", "accord", fields, made_of, lab)
    for number, recipe in enumerate(known_recipes(lab), 1):
        made_of = tuple(entry["material"] for layer in LAYERS for entry in recipe[layer])
        fields = {"name": recipe["name"], "name_ko": "", "card": f"recipe {recipe['name']}: {', '.join(made_of)}"}
        yield _composed(f"recipe-{number:03}", "recipe", fields, made_of, lab)


def _composed(
    item_id: str, collection: str, fields: Mapping[str, Any], made_of: tuple[str, ...], lab: Lab
) -> dict[str, Any]:
    notes = [lab.notes[one] for one in made_of]
    families = list(dict.fromkeys(note.family for note in notes))
    main = max(families, key=lambda f: sum(note.family == f for note in notes))
    about = {
        "about": f"{', '.join(made_of)}; {_asked_by(families, lab, 0)}",
        "about_ko": f"{', '.join(note.ko for note in notes)}; {_asked_by(families, lab, 1)}",
    }
    price = round(sum(note.price for note in notes) / len(notes), 1)
    attributes = {"collection": collection, "family": main, "price": price}
    return {"id": item_id, "fields": {**fields, **about}, "attributes": attributes}


def _asked_by(families: list[str], lab: Lab, language: int) -> str:
    """The families, and the moods and seasons that ask for them."""
    words = [*lab.moods.values(), *lab.seasons.values()]
    asked = [word[language] for word in words if set(word.families) & set(families)]
    own = [lab.families[family] if language else family for family in families]
    return ", ".join([*own, *asked])


def known_recipes(lab: Lab) -> list[dict[str, Any]]:
    rng = random.Random(7)
    briefs = [read_brief(make_brief(rng, lab), lab) for _ in range(RECIPES)]
    return [compose(brief, "basic", lab, Taste(EVERYDAY), rng) for brief in briefs]


# ---- What a language model is taught


def instructions(lab: Lab, count: int, seed: int, liked: bool, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Conversations as serving has them, each with the recipe that was good, and the schema that it satisfies."""
    rng = random.Random(seed)
    prompt = Prompt.load(HERE)
    shelf = list(items(lab))
    made = 0
    while made < count:
        text, form = make_brief(rng, lab), rng.choice(list(FORMS))
        if is_held_out(text) != held_out:
            continue
        brief = read_brief(text, lab)
        found = look_up(brief, shelf, rng)
        care = Taste(CAREFUL if liked else EVERYDAY, tuple(item["id"] for item in found))
        recipe = best_of(OF, brief, form, lab, care, rng) if liked else compose(brief, form, lab, care, rng)
        asked = prompt.form(form).messages(Facts(text, items=[{**item["fields"], "id": item["id"]} for item in found]))
        answer = json.dumps(recipe, ensure_ascii=False)
        messages = [{"role": m.role, "content": m.content} for m in asked]
        made += 1
        yield {
            "messages": [*messages, {"role": "assistant", "content": answer}],
            "slice": f"recipe-{form}",
            "schema": f"{form}.json",
        }


def is_held_out(brief: str) -> bool:
    return int(hashlib.sha256(brief.encode()).hexdigest(), 16) % HELD_OUT == 0


def best_of(times: int, brief: Brief, form: str, lab: Lab, taste: Taste, rng: random.Random) -> dict[str, Any]:
    """What made-up customers like is what the quality report likes."""
    made = [compose(brief, form, lab, taste, rng) for _ in range(times)]
    return max(made, key=lambda recipe: score(recipe, brief, form, lab).mean)


def look_up(brief: Brief, shelf: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """What retrieval may return for a brief: mostly what it asks for, from every collection, with some noise."""
    asked = [i for i in shelf if i["id"] in brief.notes]
    fitting = [i for i in shelf if i["attributes"]["family"] in brief.families and i not in asked]
    others = [i for i in shelf if i not in fitting and i not in asked]
    good = min(len(fitting), rng.choice((4, 5, 6)))
    found = [*asked, *rng.sample(fitting, good)]
    return [*found, *rng.sample(others, max(0, SHOWN - len(found)))][:SHOWN]


# ---- Evaluation of the search


def cases(lab: Lab, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """A brief, and the notes of the families that it asks for."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        text = make_brief(rng, lab)
        brief = read_brief(text, lab)
        if not is_held_out(text):
            continue
        made += 1
        accept = [note.id for note in lab.notes.values() if fit(note.family, brief.families, lab) == 1.0]
        korean = any("가" <= letter <= "힣" for letter in text)
        yield {"query": text, "accept": accept, "slice": "korean" if korean else "english"}


# ---- Files that follow from lab.yaml


def schema(form: str, lab: Lab) -> dict[str, Any]:
    """Of the recipes of a form: how many notes each layer has, which ones, and how much of one at most."""
    properties: dict[str, Any] = {"name": {"type": "string", "minLength": 2, "maxLength": 40}}
    for layer, count in zip(LAYERS, FORMS[form], strict=True):
        entry = _entry(lab.of_layer(layer))
        properties[layer] = {"type": "array", "items": entry, "minItems": count, "maxItems": count}
    if form != "basic":
        properties["concentration"] = {"enum": list(CONCENTRATIONS)}
        properties["maturation_days"] = {"type": "integer", "minimum": 7, "maximum": 60}
    if form == "premium":
        pair = {key: {"enum": list(lab.notes)} for key in ("for", "use")}
        properties["substitutes"] = {
            "type": "array",
            "items": {
                "type": "object",
                "properties": pair,
                "required": list(pair),
                "additionalProperties": False,
            },
            "maxItems": 2,
        }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _entry(notes: list[Note]) -> dict[str, Any]:
    properties = {
        "material": {"enum": [note.id for note in notes]},
        "percent": {"type": "integer", "minimum": 1, "maximum": max(note.most for note in notes)},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def figures(lab: Lab) -> dict[str, Any]:
    """The options of the check `figures`, as prompt.yaml has them."""
    return {
        "sums": [{"at": [f"{layer}.*.percent" for layer in LAYERS], "is": 100}],
        "tables": [
            {
                "at": [f"{layer}.*"],
                "key": "material",
                "value": "percent",
                "least": 1,
                "unless": "substitute",
                "most": {note.id: note.most for note in lab.of_layer(layer)},
            }
            for layer in LAYERS
        ],
        "distinct": [{"at": [f"{layer}.*.material" for layer in LAYERS]}],
    }


def write(lab: Lab) -> None:
    for form in FORMS:
        text = json.dumps(schema(form, lab), indent=1) + "\n"
        (HERE / f"{form}.json").write_text(text, encoding="utf-8")
    file = HERE / "prompt.yaml"
    kept, mark, _ = file.read_text(encoding="utf-8").partition(MARK)
    tables = yaml.safe_dump({"checks": {"figures": figures(lab)}}, sort_keys=False, default_flow_style=None, width=110)
    file.write_text(f"{kept}{mark}{tables}", encoding="utf-8")


MARK = "# What follows is written by `lab.py write`.\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("items", "instructions", "cases", "write"))
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--liked", action="store_true")
    parser.add_argument("--held-out", action="store_true", help="of the briefs that nothing is taught of")
    options = parser.parse_args()
    lab = load_lab()
    if options.what == "write":
        write(lab)
        return
    lines = {
        "items": lambda: items(lab),
        "instructions": lambda: instructions(lab, options.count, options.seed, options.liked, options.held_out),
        "cases": lambda: cases(lab, options.count, options.seed),
    }[options.what]()
    for line in lines:
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
