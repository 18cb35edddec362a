"""What the tiny model learns of meal-card: to read an utterance, and to answer about the shops that were found.

    lessons.py [--count N] [--seed N] [--held-out]

Everything is made up here, from the words of lexicon.yaml and the shops of made_up.py; prompts are rendered by what
serves. Answers name only shops of the prompt, with what stands there. `palate models build tiny` runs it (tiny.yaml).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from made_up import World

from serving.components.lexicon import NONE, Lexicon, read_lexicon
from serving.generate.prompt import Facts, Prompt
from serving.schema import Turn

HERE = Path(__file__).parent
HELD_OUT = 10
"""One utterance of so many is for tests."""
UNDERSTANDING = 0.45
"""The share of lessons in reading an utterance; the others are in answering."""
SHOWN = 3
"""Shops that a prompt shows: `generate.items` of app.yaml."""
PLAIN: Mapping[str, tuple[str, ...]] = {
    "greeting": ("안녕! 뭐 먹고 싶은지 말해 줘 😊", "반가워! 오늘은 뭐가 먹고 싶어?"),
    "thanks": ("천만에! 맛있게 먹어 😋", "응, 또 물어봐!"),
    "balance": ("잔액은 나는 볼 수 없어. 카드 뒷면의 상담 전화에 물어봐 줘!",),
    "detail": ("위에 적힌 것 말고는 나도 몰라. 가게에 전화해 봐!",),
}

ASKING = ("추천해줘", "어디 있어?", "먹고 싶어", "알려줘", "찾아줘", "땡긴다", "맛집 있어?", "어디 갈까?")
OTHERS: Mapping[str, tuple[str, ...]] = {
    "balance": (
        "내 카드 잔액 얼마 남았어?", "급식카드 한도 알려줘", "카드 잃어버렸어 어떡해", "충전은 언제 돼?",
        "카드 재발급 어떻게 해?",
    ),
    "detail": (
        "거기 영업시간이 어떻게 돼?", "몇 시까지 해?", "메뉴 뭐 있는지 보여줘", "주소 알려줘", "전화번호 뭐야?",
    ),
    "greeting": ("안녕", "안녕하세요!", "하이", "반가워", "hi"),
    "thanks": ("고마워!", "감사합니다", "땡큐 잘 먹을게", "고마워 잘 가", "bye"),
}  # fmt: skip
RELATIVE = {
    "cheaper": ("더 싼 데는?", "너무 비싸 더 저렴한 곳", "덜 비싼 데 없어?", "더 싸게 먹고 싶어"),
    "pricier": ("더 비싼 데도 괜찮아", "더 고급인 곳은?"),
    "nearer": ("더 가까운 데는?", "너무 멀어 다른 데", "좀 더 가까운 곳 없어?"),
}


def understanding(rng: random.Random, lexicon: Lexicon) -> tuple[str, Turn | None, dict[str, Any]]:
    """An utterance, the turn before it, and what it says."""
    said: dict[str, Any] = dict.fromkeys(lexicon.spec.entities, NONE)
    said |= {f"{kind}_{end}": 0 for kind in lexicon.spec.amounts for end in ("min", "max")}
    said |= {"relative": NONE} if lexicon.spec.relative else {}
    kind = rng.random()
    if kind < 0.15:
        intent = rng.choice([name for name in OTHERS if name in lexicon.spec.intents])
        return rng.choice(OTHERS[intent]), None, _ordered(lexicon, intent, said)
    if kind < 0.3:
        relative = rng.choice([name for name in RELATIVE if name in lexicon.spec.relative])
        before, _ = _wish(rng, lexicon, {})
        text = rng.choice(RELATIVE[relative])
        return text, Turn(before, ""), _ordered(lexicon, "recommend", said | {"relative": relative})
    text, found = _wish(rng, lexicon, said)
    return text, None, _ordered(lexicon, "recommend", found)


def _wish(rng: random.Random, lexicon: Lexicon, said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    said, words = dict(said), list[str]()
    kinds = list(lexicon.spec.entities)
    for kind in sorted(rng.sample(kinds, rng.choice((1, 2, 2, 3))), key=lambda k: k == "food"):
        value, one = rng.choice(list(lexicon.spec.entities[kind].values.items()))
        said[kind] = value
        spelling = rng.choice((value, *one.spellings) if any("가" <= c <= "힣" for c in value) else one.spellings)
        words.append(spelling + ("에서" if kind == "city" else ""))
    if "price" in lexicon.spec.amounts and rng.random() < 0.3:
        price = rng.randint(4, 15) * 1000
        least = rng.random() < 0.2
        said["price_min" if least else "price_max"] = price
        words.insert(0, f"{price}원 {'이상' if least else rng.choice(('이하', '안쪽', '밑'))}")
    return " ".join([*words, rng.choice(ASKING)]), said


def _ordered(lexicon: Lexicon, intent: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """As the schema has it: that is the order in which a guided model writes."""
    return {key: {"intent": intent, **said}[key] for key in lexicon.schema()["properties"]}


class Teacher:
    """Makes lessons of both kinds."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._lexicon = Lexicon(read_lexicon(HERE / "lexicon.yaml"))
        self._schema = self._lexicon.schema()
        self._prompt = Prompt.load(HERE).form("")
        self._by_food: dict[str, list[Mapping[str, Any]]] = {}
        for shop in World().items:
            self._by_food.setdefault(shop["attributes"]["category"], []).append(shop)

    def lesson(self) -> tuple[str, dict[str, Any]]:
        """What was said, and the lesson."""
        text, last, said = understanding(self._rng, self._lexicon)
        if self._rng.random() < UNDERSTANDING:
            asked, kind = self._lexicon.messages(text, last), "understand"
            answer = json.dumps(said, ensure_ascii=False)
        else:
            shops = self._found(said)
            asked = self._prompt.messages(Facts(text, items=[shop["fields"] for shop in shops]))
            answer, kind = self._answer(said["intent"], [shop["fields"] for shop in shops]), "answer"
        messages = [*({"role": m.role, "content": m.content} for m in asked), {"role": "assistant", "content": answer}]
        schema = {"schema": self._schema} if kind == "understand" else {}
        return text, {"messages": messages, "slice": kind, **schema}

    def _found(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What retrieval may return: mostly of the food that was asked for."""
        food = said.get("food", NONE)
        kinds = [food if food in self._by_food and self._rng.random() < 0.9 else None for _ in range(SHOWN)]
        return [self._rng.choice(self._by_food[kind or self._rng.choice(list(self._by_food))]) for kind in kinds]

    def _answer(self, intent: str, shops: list[Mapping[str, Any]]) -> str:
        if intent in PLAIN:
            return self._rng.choice(PLAIN[intent])
        first, second = shops[0], shops[1]
        menu = str(first["menu"]).split(", ")[0]
        told = [self._rng.choice((f"{first['name']} 어때?", f"{first['name']} 추천해!"))]
        told.append(f"{menu} 있고 {first['walk']}이야.")
        told += ["급식카드 돼!"] if first["meal_card"] else []
        told += [str(first["benefit"])] if first["benefit"] else []
        told += [f"{second['name']}도 괜찮아 😊"] if second["name"] != first["name"] else []
        return " ".join(told)


def lessons(count: int, seed: int, held_out: bool) -> Iterator[dict[str, Any]]:
    teacher, made = Teacher(seed), 0
    while made < count:
        text, lesson = teacher.lesson()
        if (zlib.crc32(text.encode()) % HELD_OUT == 0) == held_out:
            made += 1
            yield lesson


def main() -> None:
    parser = argparse.ArgumentParser(prog="lessons.py", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    for line in lessons(options.count, options.seed, options.held_out):
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
