"""What the tiny model learns of meal-card: to read an utterance, and to answer about the shops that were found.

    lessons.py [--count N] [--seed N] [--held-out]

Everything is made up here, from the words of lexicon.yaml; prompts are rendered by what serves. `palate models build
tiny` runs it (tiny.yaml).
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

from serving.components.lexicon import NONE, Lexicon, read_lexicon
from serving.schema import Turn

HERE = Path(__file__).parent
HELD_OUT = 10
"""One utterance of so many is for tests."""

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


def lessons(count: int, seed: int, held_out: bool) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    lexicon = Lexicon(read_lexicon(HERE / "lexicon.yaml"))
    schema = lexicon.schema()
    made = 0
    while made < count:
        text, last, said = understanding(rng, lexicon)
        if (zlib.crc32(text.encode()) % HELD_OUT == 0) != held_out:
            continue
        made += 1
        messages = [{"role": m.role, "content": m.content} for m in lexicon.messages(text, last)]
        answer = json.dumps(said, ensure_ascii=False)
        yield {
            "messages": [*messages, {"role": "assistant", "content": answer}],
            "slice": "understand",
            "schema": schema,
        }


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
