"""Order lines that name wines as one house calls them: nothing of a wine's own name is in them, so only users can teach
what they mean. Made up, all of them.

Used by `bench.learning` and by the end-to-end test of the learning loop: lines that users correct, and other lines with
the same nicknames, on which the next release is measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.traffic import Case

NICKNAMES = {
    "3A24401": "여름 테라스 화이트",
    "1F08389": "회장님 건배주",
    "1K00924": "노란 개업 선물",
    "1K16433": "코끼리 탑",
    "1A21251": "굴 단짝",
    "2C18016": "트러플 짝꿍",
    "4H23631": "봄 소풍 병",
    "5H00618": "치즈 접시 마무리",
    "3A23177": "막내 생일 달달이",
    "6B18788": "스테이크 대장",
    "7G18823": "말발굽 언덕",
    "1E22577": "captain's picnic red",
    "2J18895": "slow roast sunday",
    "1G00513": "midnight toast",
    "3E18371": "bonfire bottle",
}
"""Item of wine-orders -> what its users call it. None of them comes in two vintages."""

SEEN = (
    "{n} {q}병", "{n} {q}cs", "{n} {q}", "{n} {q}박스", "오늘 {n} {q}병", "{n} {q}병 부탁", "{n}로 {q}병",
    "{n} {q}병 주세요", "{q}병 {n}", "모레까지 {n} {q}병", "{n} 추가 {q}", "급하게 {n} {q}병", "{n} {q}병 있나요",
)  # fmt: skip
HELD_OUT = ("내일 {n} {q}병이요", "{n} 다시 {q}병", "급함 {n} {q}", "{n} 재고 있으면 {q}cs")


def lines(templates: Sequence[str], count: int, seed: int) -> list[Case]:
    """`count` lines, every nickname as often as the others."""
    generator = random.Random(seed)
    items = list(NICKNAMES)
    found = []
    for number in range(count):
        item = items[number % len(items)]
        template = generator.choice(templates)
        text = template.format(n=NICKNAMES[item], q=generator.choice((1, 2, 3, 6, 12, 24)))
        found.append(Case(text, frozenset({item})))
    return found
