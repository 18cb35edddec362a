"""Makes a catalogue of coffees and tasting records of them. Everything is made up: farms, notes, scores and people.

    python coffee.py items                      the catalogue, a JSON line each
    python coffee.py examples                   tasting records to train on: data.extra of app.yaml
    python coffee.py records                    records that are in no training data -> their coffee
    python coffee.py neighbours                 a coffee -> the coffees that taste most like it
    python coffee.py --seed 8 --coffees 1000 …  other ones

A coffee has a true taste: how strong each of ten sides is. Origin, process and roast make most of it, chance the rest.
Its notes and its cupping scores follow from it; so do the records of people, who use other words than the catalogue,
taste with an error and a bias of their own, leave scores out, and find coffee sweeter on a good morning.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SIDES = ("citrus", "berry", "floral", "nutty", "chocolate", "sweet", "sour", "roasted", "spicy", "body")
DAY_S = 86_400
FIRST_DAY_S = 1_767_225_600  # 2026-01-01
PEOPLE, TASTES = 60, 6
RECORDS_PER_COFFEE = 8
NEW_RATIO, HELD_OUT_RATIO = 0.15, 0.2
NEIGHBOURS = 10

# Side -> sense -> (English, Korean, as people say it in English, and in Korean). A person's words are often others than
# the catalogue's, and some stand in no list of the encoder: those it can only learn.
SENSES: dict[str, dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]]] = {
    "citrus": {
        "lemon": ("lemon", "레몬", ("lemon", "lemonade"), ("레몬", "레모네이드")),
        "orange": ("orange", "오렌지", ("tangerine", "orange"), ("귤", "오렌지")),
        "grapefruit": ("grapefruit", "자몽", ("grapefruit", "pomelo"), ("자몽", "자몽청")),
        "lime": ("lime", "라임", ("lime", "mojito"), ("라임", "모히토")),
    },
    "berry": {
        "blueberry": ("blueberry", "블루베리", ("blueberries", "blueberry jam"), ("블루베리", "블루베리잼")),
        "strawberry": ("strawberry", "딸기", ("strawberries", "strawberry"), ("딸기", "딸기우유")),
        "raspberry": ("raspberry", "라즈베리", ("raspberry", "red berries"), ("산딸기", "붉은 열매")),
        "blackcurrant": ("blackcurrant", "블랙커런트", ("cassis", "dark berries"), ("카시스", "검은 열매")),
        "cherry": ("cherry", "체리", ("cherries", "cherry pie"), ("체리", "버찌")),
    },
    "floral": {
        "jasmine": ("jasmine", "재스민", ("jasmine", "white flowers"), ("자스민", "흰 꽃")),
        "rose": ("rose", "장미", ("rose", "perfume"), ("장미", "향수")),
        "elderflower": ("elderflower", "엘더플라워", ("elderflower", "meadow"), ("엘더플라워", "들꽃")),
        "black_tea": ("black tea", "홍차", ("black tea", "earl grey"), ("홍차", "얼그레이")),
    },
    "nutty": {
        "almond": ("almond", "아몬드", ("almond", "marzipan"), ("아몬드", "마지팬")),
        "hazelnut": ("hazelnut", "헤이즐넛", ("hazelnut", "praline"), ("헤이즐넛", "프랄린")),
        "peanut": ("peanut", "땅콩", ("peanut", "peanut butter"), ("땅콩", "땅콩버터")),
        "walnut": ("walnut", "호두", ("walnut", "nuts"), ("호두", "견과")),
    },
    "chocolate": {
        "dark": ("dark chocolate", "다크초콜릿", ("dark chocolate", "brownie"), ("다크 초콜릿", "브라우니")),
        "milk": ("milk chocolate", "밀크초콜릿", ("milk chocolate", "chocolate bar"), ("밀크 초콜릿", "초코바")),
        "cocoa": ("cocoa", "코코아", ("cacao", "cocoa"), ("카카오", "코코아")),
    },
    "sweet": {
        "honey": ("honey", "꿀", ("honey", "nectar"), ("꿀", "꿀물")),
        "caramel": ("caramel", "캐러멜", ("caramel", "toffee"), ("카라멜", "달고나")),
        "brown_sugar": ("brown sugar", "흑설탕", ("brown sugar", "molasses"), ("황설탕", "조청")),
        "vanilla": ("vanilla", "바닐라", ("vanilla", "custard"), ("바닐라", "커스터드")),
    },
    "sour": {
        "bright": ("bright acidity", "산뜻한 산미", ("acidity", "tangy"), ("산미", "시큼")),
        "wine": ("red wine", "와인", ("winey", "sangria"), ("와인", "뱅쇼")),
    },
    "roasted": {
        "toast": ("toast", "구운 빵", ("toast", "bread crust"), ("토스트", "빵 껍질")),
        "smoke": ("smoke", "훈연 향", ("smoky", "campfire"), ("스모키", "모닥불")),
        "tobacco": ("tobacco", "담뱃잎", ("tobacco", "leather"), ("타바코", "가죽")),
        "bitter": ("bitter finish", "쌉쌀한 여운", ("bitter", "burnt"), ("쓴맛", "탄 맛")),
    },
    "spicy": {
        "cinnamon": ("cinnamon", "계피", ("cinnamon", "gingerbread"), ("시나몬", "수정과")),
        "clove": ("clove", "정향", ("clove", "chai"), ("정향", "차이")),
        "cedar": ("cedar", "삼나무", ("cedar", "pencil shavings"), ("삼나무", "연필")),
    },
    "body": {
        "heavy": ("heavy body", "묵직한 바디", ("heavy", "thick"), ("묵직", "걸쭉")),
        "creamy": ("creamy", "크리미", ("silky", "velvet"), ("부드러운", "벨벳")),
    },
}

# Side by side with SIDES: what is added to a taste.
ORIGINS = {
    ("Ethiopia", "에티오피아"): (0.5, 0.5, 0.6, 0, 0, 0.2, 0.4, -0.3, 0, -0.2),
    ("Kenya", "케냐"): (0.5, 0.6, 0.1, 0, 0, 0.1, 0.6, 0, 0, 0.2),
    ("Colombia", "콜롬비아"): (0.2, 0.1, 0, 0.3, 0.3, 0.5, 0.1, 0.1, 0, 0.1),
    ("Brazil", "브라질"): (-0.2, 0, 0, 0.7, 0.6, 0.3, -0.3, 0.2, 0, 0.4),
    ("Guatemala", "과테말라"): (0.2, 0, 0, 0.2, 0.6, 0.3, 0.1, 0.2, 0.3, 0.2),
    ("Sumatra", "수마트라"): (-0.3, 0, 0, 0.1, 0.3, 0, -0.3, 0.4, 0.7, 0.7),
    ("Costa Rica", "코스타리카"): (0.4, 0.2, 0.1, 0.2, 0.1, 0.6, 0.2, 0, 0, 0),
    ("Panama", "파나마"): (0.4, 0.2, 0.8, 0, -0.1, 0.4, 0.2, -0.3, 0, -0.2),
}
PROCESSES = {
    ("washed", "워시드"): (0.3, -0.1, 0.2, 0, 0, 0, 0.2, 0, 0, -0.2),
    ("natural", "내추럴"): (0, 0.5, 0.1, 0, 0.1, 0.3, 0.1, 0, 0, 0.2),
    ("honey", "허니"): (0.1, 0.1, 0, 0.1, 0.1, 0.5, -0.1, 0, 0, 0.1),
}
ROASTS = {
    ("light", "라이트"): (0.3, 0.2, 0.3, -0.2, -0.3, 0, 0.3, -0.5, -0.1, -0.3),
    ("medium", "미디엄"): (0, 0, 0, 0.2, 0.2, 0.2, 0, 0, 0, 0.1),
    ("dark", "다크"): (-0.4, -0.3, -0.4, 0.2, 0.4, 0, -0.4, 0.8, 0.2, 0.4),
}
FARMS = [
    "Otter",
    "Juniper",
    "Cobalt",
    "Heron",
    "Saffron",
    "Larch",
    "Quartz",
    "Willow",
    "Ember",
    "Falcon",
    "Maple",
    "Tidal",
]
FARMS_KO = [
    "수달",
    "노간주",
    "코발트",
    "왜가리",
    "사프란",
    "낙엽송",
    "석영",
    "버들",
    "잉걸불",
    "송골매",
    "단풍",
    "물때",
]
PLACES = ("home", "cafe", "office", "outdoors")
COMPANY = ("alone", "friends", "family", "colleagues")


@dataclass(frozen=True)
class Coffee:
    id: str
    number: int
    name: tuple[str, str]
    kind: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]
    taste: tuple[float, ...]
    senses: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tasting:
    """A record: notes and measurements of one coffee by one person."""

    coffee: Coffee
    person: int
    query: str
    record: dict[str, Any]
    liked: bool
    at_s: float
    slice: str
    held_out: bool


def coffees(seed: int, count: int) -> list[Coffee]:
    return [_coffee(random.Random(f"{seed}/coffee/{number}"), number) for number in range(count)]


def _coffee(draw: random.Random, number: int) -> Coffee:
    kind = draw.choice(list(ORIGINS)), draw.choice(list(PROCESSES)), draw.choice(list(ROASTS))
    parts = zip(ORIGINS[kind[0]], PROCESSES[kind[1]], ROASTS[kind[2]], strict=True)
    taste = tuple(min(1.0, max(0.0, 0.1 + sum(part) + draw.gauss(0, 0.12))) for part in parts)
    senses = tuple(_weighted(draw, taste, 5))
    farm = draw.randrange(len(FARMS))
    name = (f"{kind[0][0]} {FARMS[farm]} Lot {number}", f"{kind[0][1]} {FARMS_KO[farm]} {number}번")
    return Coffee(f"CT{number:04d}", number, name, kind, taste, senses)


def _weighted(draw: random.Random, taste: tuple[float, ...], count: int) -> Iterator[tuple[str, str]]:
    """Different (side, sense), the strong sides first."""
    seen: set[tuple[str, str]] = set()
    while len(seen) < count:
        side = draw.choices(SIDES, [t * t + 0.002 for t in taste])[0]
        sense = side, draw.choice(list(SENSES[side]))
        if sense not in seen:
            seen.add(sense)
            yield sense


def _scores(taste: tuple[float, ...]) -> dict[str, float]:
    """Cupping scores, 0..10."""
    citrus, berry, floral, nutty, chocolate, sweet, sour, roasted, spicy, body = taste
    return {
        "acidity": 10 * min(1, 0.1 + 0.5 * sour + 0.4 * citrus),
        "sweetness": 10 * min(1, 0.2 + 0.6 * sweet + 0.2 * berry),
        "bitterness": 10 * min(1, 0.1 + 0.8 * roasted + 0.1 * chocolate),
        "body": 10 * min(1, 0.2 + 0.8 * body),
        "aroma": 10 * min(1, 0.2 + 0.5 * floral + 0.3 * spicy),
        "aftertaste": 10 * min(1, 0.3 + 0.3 * chocolate + 0.2 * spicy + 0.2 * roasted),
        "fruitiness": 10 * min(1, 0.1 + 0.5 * berry + 0.4 * citrus),
        "nuttiness": 10 * min(1, 0.1 + 0.6 * nutty + 0.3 * chocolate),
    }


def item(coffee: Coffee) -> dict[str, Any]:
    words = [SENSES[side][sense] for side, sense in coffee.senses]
    origin, process, roast = coffee.kind
    metrics = {name: round(score, 1) for name, score in _scores(coffee.taste).items()}
    return {
        "id": coffee.id,
        "fields": {
            "name_en": coffee.name[0], "name_ko": coffee.name[1],
            "notes_en": ", ".join(w[0] for w in words), "notes_ko": ", ".join(w[1] for w in words),
            "origin_ko": origin[1], "process_ko": process[1], "roast_ko": roast[1],
            "record": {"metrics": metrics},
        },
        "attributes": {
            "origin": origin[0], "process": process[0], "roast": roast[0],
            "price": 9_000 + 500 * (coffee.number * 7 % 31),
        },
    }  # fmt: skip


def tastings(seed: int, all_coffees: list[Coffee]) -> Iterator[Tasting]:
    for coffee in all_coffees:
        for number in range(RECORDS_PER_COFFEE):
            yield _tasting(random.Random(f"{seed}/record/{coffee.number}/{number}"), coffee, seed)


def _tasting(draw: random.Random, coffee: Coffee, seed: int) -> Tasting:
    person = draw.randrange(PEOPLE)
    of_person = random.Random(f"{seed}/person/{person}")
    favourite = random.Random(f"{seed}/taste/{person % TASTES}").sample(SIDES, 3)
    bias = {name: of_person.gauss(0, 0.7) for name in _scores(coffee.taste)}
    day = draw.randrange(300)
    hour, mood = draw.choice([7, 8, 9, 13, 15, 20]) + draw.random(), draw.uniform(1, 10)
    scores = {name: score + bias[name] + draw.gauss(0, 0.8) for name, score in _scores(coffee.taste).items()}
    scores["sweetness"] += 0.25 * (mood - 5.5) * (hour < 11)
    metrics = {n: round(min(10.0, max(0.0, s)), 1) for n, s in scores.items() if draw.random() > 0.35}
    metrics |= {"temperature": round(draw.uniform(86, 96), 1), "brew_time": round(draw.uniform(120, 240))}
    moment = {
        "hour": round(hour, 2) % 24, "weekday": day % 7, "weather_temp": round(draw.gauss(15, 9), 1),
        "humidity": round(draw.uniform(20, 95)), "mood": round(mood, 1), "stress": round(draw.uniform(0, 10), 1),
        "place": draw.choice(PLACES), "company": draw.choice(COMPANY),
    }  # fmt: skip
    kind = draw.choices(("ko", "en", "mixed", "numbers"), (4, 3, 2, 1))[0]
    query = "" if kind == "numbers" else _notes(draw, coffee, kind)
    record: dict[str, Any] = (
        {} if kind != "numbers" and draw.random() < 0.2 else {"metrics": metrics, "context": [moment]}
    )
    liked = sum(coffee.taste[SIDES.index(side)] for side in favourite) + draw.gauss(0, 0.3) > 1.0
    new = _share(f"{seed}/new/{coffee.id}") < NEW_RATIO
    held_out = new or _share(f"{seed}/held-out/{coffee.id}/{person}/{day}") < HELD_OUT_RATIO
    name = "new_coffee" if new else kind if record or kind == "numbers" else f"{kind}_text_only"
    return Tasting(coffee, person, query, record, liked, FIRST_DAY_S + day * DAY_S + hour * 3600, name, held_out)


def _notes(draw: random.Random, coffee: Coffee, kind: str) -> str:
    noticed = [s for s in coffee.senses if draw.random() < 0.7] or list(coffee.senses[:1])
    if draw.random() < 0.4:
        noticed.append(next(_weighted(draw, coffee.taste, 1)))
    words = []
    for side, sense in noticed:
        korean = kind == "ko" or (kind == "mixed" and draw.random() < 0.5)
        words.append(draw.choice(SENSES[side][sense][3 if korean else 2]))
    joined = ", ".join(words)
    frame = ["{}", "{} 느낌", "{} 향이 나요", "처음엔 {}"] if kind == "ko" else ["{}", "notes of {}", "tastes like {}"]
    return draw.choice(frame).format(joined)


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def examples(seed: int, all_coffees: list[Coffee]) -> Iterator[dict[str, Any]]:
    for one in tastings(seed, all_coffees):
        if not one.held_out:
            # A person who did not like the coffee still described it: the record is right for it. Their pseudonym
            # stands where they liked it, so that what one person likes lies closer.
            user = f"made-up-{one.person:03d}" if one.liked else ""
            yield {"query": one.query, "item": one.coffee.id, "label": 1, "record": one.record, "user": user,
                   "at_s": one.at_s, "slice": one.slice}  # fmt: skip


def records(seed: int, all_coffees: list[Coffee]) -> Iterator[dict[str, Any]]:
    for one in tastings(seed, all_coffees):
        if one.held_out:
            yield {"query": one.query, "record": one.record, "accept": [one.coffee.id], "slice": one.slice}


def neighbours(seed: int, all_coffees: list[Coffee]) -> Iterator[dict[str, Any]]:
    """By the true tastes, which nothing that is trained gets to see."""
    for one in all_coffees:
        far = {
            c.id: sum((a - b) ** 2 for a, b in zip(c.taste, one.taste, strict=True)) for c in all_coffees if c != one
        }
        if _share(f"{seed}/neighbours/{one.id}") < 0.5:
            nearest = sorted(far, key=lambda name: far[name])[:NEIGHBOURS]
            yield {"query": "", "like": [one.id], "accept": nearest, "slice": one.kind[2][0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=["items", "examples", "records", "neighbours"])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--coffees", type=int, default=300)
    wanted = parser.parse_args()
    made = coffees(wanted.seed, wanted.coffees)
    lines: Iterator[dict[str, Any]]
    if wanted.what == "items":
        lines = map(item, made)
    else:
        lines = {"examples": examples, "records": records, "neighbours": neighbours}[wanted.what](wanted.seed, made)
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
