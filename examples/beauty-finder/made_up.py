"""Writes made-up reviews and metadata in the format of Amazon Reviews 2023, for tests and measurements.

Nothing in them is real: `world.yaml` and the constants here are all there is. Ids begin with MU, every product names
its maker as made up, and `MADE_UP.json` beside the files says with which seed and sizes they were written. The same
seed and sizes give the same bytes.

Like the real files: reviews are in no order of time, popularity and users are skewed, about half of the products have
no price, many have no description or no features, and one review in eight says nothing ("Love it!").
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import yaml
from numpy.typing import NDArray
from reviews import PRODUCTS, REVIEWS

FORMAT = 1
NOTE = "MADE_UP.json"
DAY_MS = 86_400_000
FIRST_MS, LAST_MS = 1_072_915_200_000, 1_694_217_600_000  # January 2004, September 2023
PRODUCTS_PER_BRAND = 40
INGREDIENTS_PER_WHY = 3
NO_PRICE, NO_DESCRIPTION, NO_FEATURES, SAYS_NOTHING = 0.55, 0.35, 0.15, 0.12
SYLLABLES = ("va", "lo", "ri", "ne", "mu", "sa", "ke", "do", "fi", "ta", "bre", "zu", "ly", "cor", "mi", "xa", "pe",
             "gon", "hel", "ju")  # fmt: skip
ENDINGS = ("ine", "yl", "osome", "ex", "ide", "ium", "one")
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class World:
    """`world.yaml`, with the invented ingredients of every (area, why)."""

    types: Sequence[tuple[str, str, Sequence[str]]]
    why: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]
    who: Mapping[str, Mapping[str, Sequence[str]]]
    when: Mapping[str, Mapping[str, Sequence[str]]]
    extras: Sequence[str]
    praise: Sequence[str]
    middling: Sequence[str]
    complaint: Sequence[str]
    short: Sequence[str]
    ingredients: Mapping[tuple[str, str], Sequence[str]]

    @classmethod
    def load(cls) -> World:
        raw = yaml.safe_load((Path(__file__).parent / "world.yaml").read_text(encoding="utf-8"))
        rng, names, ingredients = random.Random("ingredients"), set[str](), {}
        for area, whys in raw["why"].items():
            for why in whys:
                ingredients[area, why] = [_new_name(rng, names, ENDINGS) for _ in range(INGREDIENTS_PER_WHY)]
        told = ("praise", "middling", "complaint", "short")
        return cls(tuple((n, a, w) for n, a, w in raw["types"]), raw["why"], raw["who"], raw["when"],
                   [*raw["scents"], *raw["shades"]], *(raw[key] for key in told), ingredients)  # fmt: skip


class Made(NamedTuple):
    """What a product is, as both its page and its reviews tell it, each in their own words."""

    id: str
    type: int
    brand: str
    whys: tuple[str, ...]
    who: str
    when: str
    extra: str


def _new_name(rng: random.Random, taken: set[str], endings: Sequence[str]) -> str:
    while True:
        name = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))) + rng.choice(endings)
        if name not in taken:
            taken.add(name)
            return name.capitalize()


def write(folder: Path, items: int, reviews: int, seed: int, tell: Tell) -> None:
    """Both files and the note into `folder`; each appears complete or not at all. `tell` hears (step, done, all).

    Memory grows with the items (some 1 kB each) and by 32 bytes a review. Raises ValueError for fewer reviews than
    items.
    """
    if not 0 < items <= reviews:
        raise ValueError(f"{items} items and {reviews} reviews: every item has a review, as in the real files")
    folder.mkdir(parents=True, exist_ok=True)
    world, rng, numbers = World.load(), random.Random(seed), np.random.default_rng(seed)
    brands, taken = [], set[str]()
    for _ in range(max(5, items // PRODUCTS_PER_BRAND)):
        brands.append(_new_name(rng, taken, ("", "a", "elle", "ique", "ora")))
    made = [_item(world, rng, brands, number) for number in range(items)]
    columns = _columns(numbers, items, reviews)
    count = np.bincount(columns.item, minlength=items)
    mean = np.bincount(columns.item, columns.rating, items) / count
    products = partial(_product_lines, world, random.Random(f"{seed} pages"), made, count, mean)
    _write_file(folder / PRODUCTS, products(), partial(tell, "products"), items)
    said = _review_lines(world, random.Random(f"{seed} reviews"), made, columns)
    _write_file(folder / REVIEWS, said, partial(tell, "reviews"), reviews)
    note = {"made_up": "nothing in these files is real; examples/beauty-finder/made_up.py wrote them",
            "format": FORMAT, "items": items, "reviews": reviews, "seed": seed}  # fmt: skip
    (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _write_file(path: Path, lines: Any, tell: Callable[[int, int], None], total: int) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with aside.open("wb", buffering=1 << 20) as file:
            for done, line in enumerate(lines, 1):
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                if done % 1000 == 0:
                    tell(done, total)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


class _Columns(NamedTuple):
    """One row a review, in the order of the file."""

    item: NDArray[np.int64]
    user: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    rating: NDArray[np.int64]


def _columns(numbers: np.random.Generator, items: int, reviews: int) -> _Columns:
    """Every item has a review, the others go by a power law; of items, the later years have more."""
    weight = (numbers.permutation(items) + 10.0) ** -0.9
    drawn = np.searchsorted(np.cumsum(weight / weight.sum()), numbers.random(reviews - items)).clip(0, items - 1)
    item = numbers.permutation(np.concatenate([np.arange(items), drawn]))
    born = numbers.random(items) ** 0.45  # share of the years before it was first sold
    age = born[item] + (1 - born[item]) * numbers.beta(1.0, 1.8, reviews)
    time_ms = (FIRST_MS + age * (LAST_MS - FIRST_MS)).astype(np.int64)
    user = (max(1, int(reviews * 0.9)) * numbers.random(reviews) ** 1.5).astype(np.int64)
    liking = numbers.normal(0.0, 0.08, items)[item] + numbers.random(reviews)
    rating = 1 + np.searchsorted([0.13, 0.20, 0.29, 0.42], liking)
    return _Columns(item, user, time_ms, rating)


def _item(world: World, rng: random.Random, brands: Sequence[str], number: int) -> Made:
    kind = rng.randrange(len(world.types))
    whys = list(world.why[world.types[kind][1]])
    several = rng.sample(whys, 1 if rng.random() < 0.6 else 2)
    return Made(_code(number, 8), kind, rng.choice(brands), tuple(several), rng.choice(list(world.who)),
                rng.choice(list(world.when)), rng.choice(world.extras))  # fmt: skip


def _code(number: int, length: int) -> str:
    """MU and the number in base 36: as long as an ASIN with 8 digits."""
    digits = ""
    for _ in range(length):
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return f"MU{digits}"


def _product_lines(world: World, rng: random.Random, made: Sequence[Made], count: Any, mean: Any) -> Any:
    for item, reviews, rating in zip(made, count.tolist(), mean.tolist(), strict=True):
        name, area, _ = world.types[item.type]
        has = [_page(rng, world.why[area][why]["has"], world.ingredients[area, why]) for why in item.whys]
        fit = [rng.choice(world.who[item.who]["has"]), rng.choice(world.when[item.when]["has"])]
        size = rng.choice(("1 Oz", "3.4 Fl Oz", "8 Ounce", "Pack of 2", "Set of 3", "50 ml"))
        in_title = rng.choice([*has, *fit]).title()
        title = f"{item.brand} {name} with {in_title}, {item.extra.title()}, {size}"
        features = [] if rng.random() < NO_FEATURES else _shuffled(rng, [
            *(f"{text.capitalize()} inside" for text in has), f"{fit[0].capitalize()}", f"{fit[1].capitalize()}",
            f"{item.extra.capitalize()}, {size}",
        ])  # fmt: skip
        description = [] if features and rng.random() < NO_DESCRIPTION else [
            f"{item.brand} presents its {name.lower()} in {item.extra}. The formula combines {' and '.join(has)}.",
            f"It is {fit[0]} and {fit[1]}. Keep in a cool place.",
        ]  # fmt: skip
        yield {
            "main_category": "All Beauty", "title": title, "average_rating": round(rating, 1),
            "rating_number": reviews, "features": features, "description": description,
            "price": None if rng.random() < NO_PRICE else round(3 + 60 * rng.random() ** 3, 2),
            "images": [{"thumb": f"https://example.invalid/{item.id}-t.jpg", "large": f"https://example.invalid/{item.id}.jpg",
                        "variant": "MAIN", "hi_res": None}],
            "videos": [], "store": item.brand, "categories": [],
            "details": {"Brand": item.brand, "Manufacturer": "made up", "Unit Count": size},
            "parent_asin": item.id, "bought_together": None,
        }  # fmt: skip


def _page(rng: random.Random, has: Sequence[str], ingredients: Sequence[str]) -> str:
    """How a page tells what a product is for: two times in three by an ingredient of an invented name."""
    return f"{rng.choice(ingredients)} complex" if rng.random() < 0.67 else rng.choice(has)


def _shuffled(rng: random.Random, values: list[str]) -> list[str]:
    rng.shuffle(values)
    return values


def _review_lines(world: World, rng: random.Random, made: Sequence[Made], columns: _Columns) -> Any:
    for row in range(len(columns.item)):
        item, rating = made[int(columns.item[row])], int(columns.rating[row])
        text = _told(world, rng, item, rating)
        variant = rng.random()
        pictures = [] if variant < 0.95 else [{"small_image_url": "https://example.invalid/s.jpg",
                    "medium_image_url": "https://example.invalid/m.jpg",
                    "large_image_url": "https://example.invalid/l.jpg", "attachment_type": "IMAGE"}]  # fmt: skip
        yield {
            "rating": float(rating), "title": text.partition(".")[0][:60], "text": text, "images": pictures,
            "asin": item.id if variant > 0.25 else f"{item.id[:-1]}V", "parent_asin": item.id,
            "user_id": _code(int(columns.user[row]), 26), "timestamp": int(columns.time_ms[row]),
            "helpful_vote": int(rng.random() ** -0.5) - 1, "verified_purchase": rng.random() < 0.9,
        }  # fmt: skip


def _told(world: World, rng: random.Random, item: Made, rating: int) -> str:
    """A review: who, when and why in a reviewer's words, each told by some, in no fixed order."""
    if rng.random() < SAYS_NOTHING:
        return rng.choice(world.short)
    _, area, words = world.types[item.type]
    parts = []
    for why in item.whys:
        if rng.random() < 0.75:
            parts.append(rng.choice(world.why[area][why]["told"]) if rating > 2 else _unlike(world, rng, area, why))
    if rng.random() < 0.6:
        parts.append(rng.choice(world.who[item.who]["told"]))
    if rng.random() < 0.5:
        parts.append(f"I use it {rng.choice(world.when[item.when]['told'])}")
    if rng.random() < 0.3:
        parts.append(f"the {item.extra} one")
    if rng.random() < 0.08:
        parts.append(f"{item.brand} never lets me down" if rating > 3 else f"expected more from {item.brand}")
    if rng.random() < 0.7 or not parts:
        thing = rng.choice(words)
        parts.append(f"this {thing} is {rng.choice(('great', 'what I needed', 'fine', 'a keeper'))}" if rating > 2
                     else f"this {thing} is not for me")  # fmt: skip
    mood = world.praise if rating > 3 else world.middling if rating == 3 else world.complaint
    said = [f"{part[0].upper()}{part[1:]}." for part in _shuffled(rng, parts)]
    return " ".join([rng.choice(mood), *said] if rng.random() < 0.5 else [*said, rng.choice(mood)])


def review_texts(seed: int) -> Iterator[str]:
    """Texts of reviews as the files have them, without end, for what needs nothing else of them."""
    world, rng = World.load(), random.Random(seed)
    while True:
        yield _told(world, rng, _item(world, rng, ["Mara"], 0), rng.randint(1, 5))


def _unlike(world: World, rng: random.Random, area: str, why: str) -> str:
    return f"I hoped to say that {rng.choice(world.why[area][why]['told'])}, but no"
