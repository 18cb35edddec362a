"""Prints what the app needs of the made-up world in made_up.py. Everything is made up: shops, prices, people, orders.

    python meal_card.py items          the catalogue, a JSON line each
    python meal_card.py interactions   what users did before Palate: feedback.source of app.yaml
    python meal_card.py examples       what was shown to them and what they chose: data.extra of the ranker
    python meal_card.py cases          utterances -> the shops that are what was asked for
    python meal_card.py --seed 8 …     another world

Interactions and examples end before the days that bench/meal_card.py judges by.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any

from made_up import CITIES, KINDS, TEST_DAY, World

Line = dict[str, Any]
CASES = 150
ASKS = ("추천해줘", "어디 있어?", "먹고 싶어", "알려줘", "찾아줘")
WEIGHTS = {"order": 2.0, "click": 1.0}


def items(world: World) -> Iterator[Line]:
    yield from world.items


def interactions(world: World) -> Iterator[Line]:
    for session in world.sessions(last_day=TEST_DAY):
        about = {"user": world.user_id(session.user), "at_s": session.at_s, "record": session.record}
        for shop in session.clicked:
            yield {**about, "item": world.shop_id(shop), "event": "order" if shop == session.ordered else "click"}


def examples(world: World) -> Iterator[Line]:
    """Every shop of a list that was looked at, right or wrong; `rank` is where it stood. The lists came without words:
    the app showed them when it was opened."""
    for session in world.sessions(last_day=TEST_DAY):
        about = {
            "query": "",
            "user": world.user_id(session.user),
            "at_s": session.at_s,
            "record": session.record,
        }
        for rank, shop in enumerate(session.shown, 1):
            event = "order" if shop == session.ordered else "click" if shop in session.clicked else "shown"
            yield {**about, "item": world.shop_id(shop), "label": int(event != "shown"), "event": event, "rank": rank,
                   "weight": WEIGHTS.get(event, 1.0)}  # fmt: skip


def cases(world: World, seed: int) -> Iterator[Line]:
    """Each names a kind of food and some of: the card, a city, a price. Those that no shop answers want abstention."""
    rng = random.Random(seed)
    for number in range(CASES):
        kind = rng.choice(list(KINDS))
        words, filters = [], {"category": kind}
        if number % 2:
            words.append(rng.choice(("급식카드 되는", "급식카드 가능한")))
            filters["meal_card"] = True
        if number % 3 == 0:
            city = rng.choice(list(CITIES))
            words.insert(0, f"{city}에서")
            filters["city"] = city
        if number % 5 == 0:
            price = rng.choice((5000, 7000, 10_000))
            words.append(f"{price}원 이하")
            filters["price"] = {"lte": price}
        menu = rng.choice([kind, kind, *(one.split()[-1] for one, _ in KINDS[kind][1] if one.split()[-1] in KNOWN)])
        accept = [world.shop_id(shop) for shop in world.shops_where(filters)]
        yield {"query": " ".join([*words, menu, rng.choice(ASKS)]), "accept": accept, "slice": f"{len(filters)} wishes"}


KNOWN = frozenset({"떡볶이", "라볶이", "후라이드", "짜장면", "짬뽕", "우동", "비빔밥", "잔치국수"})
"""Menus that lexicon.yaml knows as a kind of food."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["items", "interactions", "examples", "cases"])
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    world = World(options.seed)
    lines = {
        "items": lambda: items(world),
        "interactions": lambda: interactions(world),
        "examples": lambda: examples(world),
        "cases": lambda: cases(world, options.seed),
    }[options.what]()
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
