"""MADE-UP click logs of a meal-card app, and the click model that made them: who clicks what, how probably.

Nothing here was ever observed. `bench.ranking` trains on them and measures how near a ranker comes to the model itself,
which is the oracle: it knows every taste. Deterministic for a seed. What decides a click:
- a user's taste for categories: of a latent vector, so that few clicks tell something about categories not yet tried;
- a group's habits: what it eats at which time of day (a cross that neither alone shows), and how much prices hurt it;
- a shop's quality, of which its rating is a noisy view; whether a holder of a meal card can pay with it there;
- the place in the list: lower ones are seldom looked at. The oracle, like a ranker, does not know the place.
Days go by: some users and shops appear only after the training period.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from training.dataset.example import DatasetInfo, Example, save_info, write_examples

CATEGORIES = 24
GROUPS = ("child", "middle-school", "high-school", "adult")
SLOTS = ("breakfast", "lunch", "after-school", "dinner", "night")
LATENT = 6
LIST_LENGTH = 10
DAY_S = 86_400.0
START_S = 1_750_000_000.0
TRAIN_DAYS, VALIDATION_DAYS, TEST_DAYS = 40, 5, 10
BASE_LOGIT = -1.6
LATE_RATIO = 0.08
"""Of users and of shops that appear only in the test days."""


@dataclass(frozen=True, slots=True)
class Logs:
    """Impressions in time order, a column each, (n,). `oracle`: the true probability of a click where the place is
    looked at. `examined`: that it is. `part`: 0 train, 1 validation, 2 test."""

    users: NDArray[np.int64]
    shops: NDArray[np.int64]
    slots: NDArray[np.int64]
    at_s: NDArray[np.float64]
    ranks: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    oracle: NDArray[np.float64]
    examined: NDArray[np.float64]
    part: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class World:
    """Everything about the made-up people and shops; `late_*`: those that appear only in the test days."""

    group: NDArray[np.int64]
    holds_card: NDArray[np.bool_]
    affinity: NDArray[np.float64]
    category: NDArray[np.int64]
    price: NDArray[np.float64]
    rating: NDArray[np.float64]
    takes_card: NDArray[np.bool_]
    quality: NDArray[np.float64]
    habits: NDArray[np.float64]
    thrift: NDArray[np.float64]
    late_users: NDArray[np.bool_]
    late_shops: NDArray[np.bool_]

    def probability(
        self, users: NDArray[np.int64], shops: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(n,): that the user clicks the shop when looking at it."""
        group, category = self.group[users], self.category[shops]
        dear = np.log(self.price[shops] / 9000.0)
        card = self.holds_card[users] * np.where(self.takes_card[shops], 0.8, -1.0)
        logit = (
            BASE_LOGIT
            + self.affinity[users, category]
            + self.habits[group, slots, category]
            - self.thrift[group] * dear
            + card
            + self.quality[shops]
        )
        return np.asarray(1 / (1 + np.exp(-logit)), np.float64)


def make_world(users: int, shops: int, seed: int) -> World:
    rng = np.random.default_rng([seed, 1])
    tastes = rng.normal(size=(users, LATENT))
    flavours = rng.normal(size=(CATEGORIES, LATENT))
    category = rng.choice(CATEGORIES, shops, p=rng.dirichlet(np.full(CATEGORIES, 3.0)))
    usual_price = np.exp(rng.normal(np.log(9000), 0.4, CATEGORIES))
    quality = rng.normal(0, 0.6, shops)
    return World(
        group=rng.choice(len(GROUPS), users, p=[0.3, 0.3, 0.3, 0.1]),
        holds_card=rng.random(users) < 0.6,
        affinity=1.1 * tastes @ flavours.T / np.sqrt(LATENT),
        category=category,
        price=np.round(usual_price[category] * np.exp(rng.normal(0, 0.25, shops)), -2),
        rating=np.clip(3.8 + 0.6 * quality + rng.normal(0, 0.25, shops), 1, 5).round(1),
        takes_card=rng.random(shops) < 0.5,
        quality=quality,
        habits=rng.normal(0, 0.7, (len(GROUPS), len(SLOTS), CATEGORIES)),
        thrift=np.array([1.6, 1.2, 0.8, 0.3]),
        late_users=rng.random(users) < LATE_RATIO,
        late_shops=rng.random(shops) < LATE_RATIO,
    )


def make_logs(world: World, requests: int, seed: int) -> Logs:
    """Lists of ten for `requests` requests. In training and validation the list is sorted, noisily, by the shops'
    quality, as a list by popularity is; in the test days it is shuffled, so that place and merit are independent."""
    rng = np.random.default_rng([seed, 2])
    days = TRAIN_DAYS + VALIDATION_DAYS + TEST_DAYS
    when = np.sort(rng.random(requests) * days)
    part = np.digitize(when, [TRAIN_DAYS, TRAIN_DAYS + VALIDATION_DAYS])
    activity = rng.dirichlet(np.full(len(world.group), 2.0))
    users = rng.choice(len(activity), requests, p=activity)
    early = np.flatnonzero(~world.late_users)
    misplaced = world.late_users[users] & (part < 2)
    users[misplaced] = rng.choice(early, int(misplaced.sum()), p=activity[early] / activity[early].sum())
    keys = rng.random((requests, len(world.category)))
    keys[np.ix_(part < 2, world.late_shops)] = 2.0
    shops = np.argpartition(keys, LIST_LENGTH, axis=1)[:, :LIST_LENGTH]
    merit = np.where((part < 2)[:, None], world.quality[shops], 0.0) + rng.normal(0, 0.6, shops.shape)
    shops = np.take_along_axis(shops, np.argsort(-merit, axis=1), axis=1)
    slots = rng.integers(len(SLOTS), size=requests)
    n = requests * LIST_LENGTH
    ranks = np.tile(np.arange(1, LIST_LENGTH + 1), requests)
    each = np.repeat(np.arange(requests), LIST_LENGTH)
    oracle = world.probability(users[each], shops.ravel(), slots[each])
    examined = ranks**-0.5
    clicked = rng.random(n) < oracle * examined
    at_s = START_S + when[each] * DAY_S
    return Logs(users[each], shops.ravel(), slots[each], at_s, ranks, clicked, oracle, examined, part[each])


def write_logs(world: World, logs: Logs, folder: Path) -> None:
    """What `training` reads: `items.jsonl` and a data-set folder `dataset`. A click weighs 1 / how often its place is
    looked at, as `training.dataset` does it; the test part is written as it is."""
    dataset = folder / "dataset"
    dataset.mkdir(parents=True, exist_ok=True)
    with (folder / "items.jsonl").open("wb") as file:
        for i in range(len(world.category)):
            attributes = {
                "category": f"category {world.category[i]}",
                "price": float(world.price[i]),
                "rating": float(world.rating[i]),
                "meal_card": bool(world.takes_card[i]),
            }
            item = {"id": f"shop-{i:05}", "fields": {"name": f"made-up shop {i}"}, "attributes": attributes}
            file.write(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE))
    counts = {}
    for number, name in enumerate(("train", "validation", "test")):
        rows = np.flatnonzero(logs.part == number)
        counts[name] = write_examples(dataset / f"{name}.jsonl", (example(world, logs, int(row)) for row in rows))
    save_info(dataset, DatasetInfo("made-up", counts))


def example(world: World, logs: Logs, row: int) -> Example:
    user, clicked = int(logs.users[row]), bool(logs.clicked[row])
    return Example(
        query="",
        item=f"shop-{logs.shops[row]:05}",
        label=int(clicked),
        weight=float(1 / logs.examined[row]) if clicked and logs.part[row] < 2 else 1.0,
        at_s=float(logs.at_s[row]),
        user=f"user-{user:05}",
        rank=int(logs.ranks[row]),
        event="click" if clicked else "shown",
        record={
            "group": GROUPS[world.group[user]],
            "slot": SLOTS[logs.slots[row]],
            "meal_card": bool(world.holds_card[user]),
        },
    )
