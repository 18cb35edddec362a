"""A made-up world of shops and of the young people who eat there: no shop, person, price or order in it is real.

`meal_card.py` prints what of it the app needs, `bench/meal_card.py` judges recommendations by it: because the world is
made up, what a user would really choose is known (`World.accepts`).

A user likes some kinds of food, minds prices and walks, and leans to shops that do good; each shop has a quality of
its own; users and shops have three hidden sides that no attribute tells. In the afternoon snacks are wanted, at lunch
and in the evening meals. Days count from `FIRST_DAY_S`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_DAY_S = 1_772_323_200  # 2026-03-01
DAYS, TEST_DAY = 60, 48
"""What happens from `TEST_DAY` on is for tests: nothing is learnt from it."""
SHOPS_PER_CITY, USERS_PER_CITY = 120, 60
SHOWN = 10
HIDDEN = 3
CITIES = {
    "서울": ("마포구", ("서교", "연남", "망원", "합정", "성산", "상암")),
    "부산": ("부산진구", ("전포", "부전", "양정", "가야", "개금", "초읍")),
    "대구": ("수성구", ("범어", "만촌", "황금", "지산", "두산", "시지")),
    "대전": ("유성구", ("궁동", "봉명", "전민", "신성", "노은", "관평")),
    "광주": ("북구", ("용봉", "운암", "일곡", "문흥", "두암", "오치")),
}
# Kind -> (ends of names, menus with their usual price in won, how often it is hot)
KINDS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, int], ...], float]] = {
    "치킨": (("치킨", "닭강정", "통닭"), (("닭강정 컵", 4500), ("후라이드 반", 8500), ("양념치킨 반", 9000)), 0.3),
    "분식": (("분식", "떡볶이"), (("떡볶이", 3500), ("참치김밥", 4000), ("라볶이", 5000), ("튀김 모둠", 4500)), 0.6),
    "햄버거": (("버거", "수제버거"), (("불고기버거", 5500), ("치즈버거 세트", 7500), ("새우버거", 6000)), 0.1),
    "피자": (("피자", "화덕피자"), (("조각피자", 4000), ("1인 페퍼로니피자", 7900), ("고구마피자", 9500)), 0.1),
    "한식": (("밥상", "식당", "국밥"), (("김치찌개", 7500), ("제육덮밥", 8000), ("비빔밥", 7500)), 0.4),
    "중식": (("반점", "짜장"), (("짜장면", 6500), ("짬뽕", 8000), ("볶음밥", 7500)), 0.4),
    "일식": (("돈까스", "우동"), (("등심돈까스", 8500), ("우동", 6500), ("카레", 7500)), 0.1),
    "국수": (("국수", "칼국수"), (("잔치국수", 5500), ("바지락칼국수", 8000), ("비빔국수", 6500)), 0.3),
    "도시락": (("도시락", "컵밥"), (("치킨마요", 4900), ("제육컵밥", 5500), ("돈까스도시락", 6500)), 0.2),
    "샌드위치": (("토스트", "샌드위치"), (("햄치즈토스트", 3800), ("에그샌드위치", 5200), ("닭샐러드", 7000)), 0.0),
    "디저트": (("카페", "빙수"), (("크로플", 4500), ("딸기빙수", 8500), ("초코와플", 4000)), 0.0),
}  # fmt: skip
FIRST_WORDS = ("하늘", "햇살", "달빛", "푸른", "다정", "소풍", "도담", "온누리", "방과후", "골목", "별빛", "마루",
               "단짝", "우리", "꿈터", "새싹", "모퉁이", "한아름", "두리", "솔솔",
               "정다운", "나들이", "해맑은", "참좋은")  # fmt: skip
BENEFITS = ("급식카드 학생 음료 무료", "급식카드 학생 10% 할인", "급식카드 학생 곱빼기 무료")
PLACES = ("school", "home", "academy")
AGES = ("child", "middle", "high")
# What is wanted more (logits), by part of the day.
WANTED = {
    "lunch": {"한식": 0.6, "국수": 0.5, "중식": 0.5, "도시락": 0.4, "디저트": -1.0},
    "after_school": {"분식": 1.0, "디저트": 0.8, "샌드위치": 0.6, "햄버거": 0.3, "한식": -0.8},
    "evening": {"치킨": 0.7, "한식": 0.4, "피자": 0.5, "일식": 0.3, "디저트": -0.4},
}
PART_HOURS = {"lunch": (11, 14), "after_school": (15, 17), "evening": (18, 21)}
UNIT = NDArray[np.float64]


def part_of(hour: int) -> str:
    return next((name for name, (first, last) in PART_HOURS.items() if first <= hour <= last), "evening")


@dataclass(frozen=True)
class Session:
    """A user of `city` looked at `shown`, clicked some of them and ordered one, or none (-1). Shops by number."""

    user: int
    at_s: int
    record: dict[str, Any]
    shown: tuple[int, ...]
    clicked: tuple[int, ...]
    ordered: int


class World:
    """All of it follows from `seed`."""

    def __init__(self, seed: int = 7) -> None:
        self._seed = seed
        rng = np.random.default_rng([seed, 1])
        self.cities = list(CITIES)
        self.kinds = list(KINDS)
        count, people = SHOPS_PER_CITY * len(CITIES), USERS_PER_CITY * len(CITIES)
        self.city_of_shop = np.repeat(np.arange(len(CITIES)), SHOPS_PER_CITY)
        self.city_of_user = np.repeat(np.arange(len(CITIES)), USERS_PER_CITY)
        self.kind_of_shop = rng.integers(len(self.kinds), size=count)
        self._price_factor = rng.uniform(0.8, 1.35, size=count)
        self.takes_card = rng.random(count) < 0.65
        self.does_good = self.takes_card & (rng.random(count) < 0.3)
        self.open_late = rng.random(count) < 0.35
        self.hot = rng.random(count) < np.array([KINDS[self.kinds[k]][2] for k in self.kind_of_shop])
        self.distance_m = np.round(rng.gamma(3.0, 140.0, size=count) / 10) * 10 + 50
        self.quality = rng.normal(0, 0.6, size=count)
        self.rating = np.clip(np.round(4.1 + 0.3 * self.quality + rng.normal(0, 0.15, size=count), 1), 3.0, 5.0)
        self._shop_sides = rng.normal(0, 1, size=(count, HIDDEN))
        self._user_sides = rng.normal(0, 0.45, size=(people, HIDDEN))
        self._taste = rng.normal(0, 1.1, size=(people, len(self.kinds)))
        self._minds_price = rng.uniform(0.2, 1.2, size=people)
        self._minds_walk = rng.uniform(0.1, 0.7, size=people)
        self._leans_to_good = rng.uniform(0.0, 0.8, size=people)
        self.has_card = rng.random(people) < 0.7
        self.age_of_user = rng.integers(len(AGES), size=people)

    # ---- what is known of a shop

    def shop_id(self, shop: int) -> str:
        return f"MC{shop:04d}"

    def user_id(self, user: int) -> str:
        return f"student-{user:03d}"

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        taken: set[str] = set()
        return [
            self._item(shop, np.random.default_rng([self._seed, 2, shop]), taken) for shop in range(len(self.rating))
        ]

    def _item(self, shop: int, rng: np.random.Generator, taken: set[str]) -> dict[str, Any]:
        city, kind = self.cities[self.city_of_shop[shop]], self.kinds[self.kind_of_shop[shop]]
        district, quarters = CITIES[city]
        ends, menus, _ = KINDS[kind]
        quarter = str(rng.choice(quarters))
        name = ""
        while not name or name in taken:
            name = f"{rng.choice(FIRST_WORDS)}{rng.choice(ends)} {quarter}점"
            quarter = str(rng.choice(quarters))
        taken.add(name)
        priced = [(menu, int(round(usual * self._price_factor[shop] / 100) * 100)) for menu, usual in menus]
        good, card = bool(self.does_good[shop]), bool(self.takes_card[shop])
        facts = (("급식카드 사용 가능", card), ("선한영향력가게", good), ("매운 메뉴", self.hot[shop]))
        features = [word for word, is_true in (*facts, ("밤 11시까지", self.open_late[shop])) if is_true]
        distance = int(self.distance_m[shop])
        return {
            "id": self.shop_id(shop),
            "fields": {
                "name": name,
                "category": kind,
                "menu": ", ".join(f"{menu} {price:,}원" for menu, price in priced),
                "price": f"{min(price for _, price in priced):,}원부터",
                "address": f"{city} {district} {name.split()[-1].removesuffix('점')}동",
                "hours": "11:00-23:00" if self.open_late[shop] else "10:30-20:30",
                "features": ", ".join(features) or "-",
                "benefit": str(rng.choice(BENEFITS)) if good else "",
                "walk": f"학교에서 걸어서 {max(1, round(distance / 70))}분",
                "meal_card": card,
                "good_influence": good,
            },
            "attributes": {
                "category": kind,
                "city": city,
                "price": min(price for _, price in priced),
                "meal_card": card,
                "good_influence": good,
                "open_late": bool(self.open_late[shop]),
                "spicy": bool(self.hot[shop]),
                "distance_m": distance,
                "rating": float(self.rating[shop]),
            },
        }

    # ---- what nobody knows: what a user would choose

    @cached_property
    def prices(self) -> UNIT:
        return np.array([item["attributes"]["price"] for item in self.items], np.float64)

    def logits(self, user: int, part: str) -> UNIT:
        """(shops,) how much the user wants each of them in this part of the day."""
        wanted = np.array([WANTED[part].get(kind, 0.0) for kind in self.kinds])
        logits = (self._taste[user] + wanted)[self.kind_of_shop] + self.quality - 1.3
        logits += self._shop_sides @ self._user_sides[user]
        logits -= self._minds_price[user] * (self.prices - 5000) / 2000
        logits -= self._minds_walk[user] * (self.distance_m - 400) / 300
        logits += self._leans_to_good[user] * self.does_good
        logits += np.where(self.takes_card, 0.6, -1.2) if self.has_card[user] else 0.0
        return np.where(self.city_of_shop == self.city_of_user[user], logits, -20.0)

    def accepts(self, user: int, part: str) -> UNIT:
        """(shops,) the probability, 0..1, that the user is glad of each of them."""
        return np.asarray(1 / (1 + np.exp(-self.logits(user, part))), np.float64)

    # ---- what was done

    def sessions(self, first_day: int = 0, last_day: int = DAYS) -> Iterator[Session]:
        """Day by day. What was shown was half what is popular in the city, half chance: the log of a simple app."""
        liked = self.quality + 0.4 * self.does_good - (self.prices - 5000) / 6000
        for day in range(first_day, last_day):
            rng = np.random.default_rng([self._seed, 3, day])
            for user in np.flatnonzero(rng.random(len(self.city_of_user)) < 0.7).tolist():
                part = str(rng.choice(list(PART_HOURS), p=[0.25, 0.45, 0.3]))
                yield self._session(user, day, part, liked, rng)

    def _session(self, user: int, day: int, part: str, liked: UNIT, rng: np.random.Generator) -> Session:
        near = np.flatnonzero(self.city_of_shop == self.city_of_user[user])
        worth = np.where(rng.random(len(near)) < 0.5, liked[near], 0.0) + rng.gumbel(size=len(near))
        shown = near[np.argsort(-worth, kind="stable")[:SHOWN]]
        glad = self.accepts(user, part)[shown]
        looked_at = rng.random(SHOWN) < np.maximum(0.3, 1 / np.sqrt(np.arange(1, SHOWN + 1)))  # fewer look further down
        clicked = shown[looked_at & (rng.random(SHOWN) < glad)]
        ordered = -1
        if len(clicked) and rng.random() < 0.7:
            logits = self.logits(user, part)[clicked] + rng.gumbel(size=len(clicked))
            ordered = int(clicked[np.argmax(logits)])
        hour = int(rng.integers(PART_HOURS[part][0], PART_HOURS[part][1] + 1))
        at_s = FIRST_DAY_S + day * 86_400 + (hour - 9) * 3600 + int(rng.integers(3600))
        return Session(
            user, at_s, self.record(user, day, hour, rng), tuple(shown.tolist()), tuple(clicked.tolist()), ordered
        )

    def record(self, user: int, day: int, hour: int, rng: np.random.Generator) -> dict[str, Any]:
        """What the app sends along with a query of this user."""
        chances = {"lunch": (0.8, 0.15, 0.05), "after_school": (0.5, 0.2, 0.3), "evening": (0.1, 0.5, 0.4)}[
            part_of(hour)
        ]
        return {
            "hour": hour,
            "weekday": (day + 6) % 7,  # the first day is a Sunday
            "place": str(rng.choice(PLACES, p=chances)),
            "city": self.cities[self.city_of_user[user]],
            "age": AGES[self.age_of_user[user]],
        }

    def shops_where(self, filters: dict[str, Any]) -> Sequence[int]:
        """Those whose attributes have these values, or lie at or below `{"lte": bound}`."""
        return [
            n for n, item in enumerate(self.items) if all(_holds(item["attributes"][k], v) for k, v in filters.items())
        ]


def _holds(value: Any, wanted: Any) -> bool:
    return bool(value <= wanted["lte"]) if isinstance(wanted, dict) else bool(value == wanted)
