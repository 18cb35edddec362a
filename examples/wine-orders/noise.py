"""Prints order lines as customers mistype them, with the items each may mean: the evaluation set of this example.

    python noise.py --seed 7 --split dev  > evaluation/dev.jsonl
    python noise.py --seed 7 --split test > evaluation/test.jsonl

One JSON object a line: `query`, `accept` (ids that are right; none means: abstain), `slice` (the noise class),
`quantity` (the number as it is written) and `vintage` (where the line names one). The lines are made up. A wine, with
all its vintages and bottle sizes, is in one split only, so a split never asks for an item the other has shown.

The noise is made here from the catalogue alone: neither aliases.yaml nor the search engine is read, lest the examiner
know the answers. `hangul.py` holds what concerns single letters. Called by people and by tests; standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import hangul

HERE = Path(__file__).parent
LINES_PER_CLASS = 50
MAX_MEANINGS = 3  # a line that fits more wines than this is no order, it is a question

SHORT = {
    "카베르네 소비뇽": ("까쇼", "카쇼", "CS", "카베", "까베"),
    "소비뇽 블랑": ("소블", "쇼블", "SB"),
    "피노 누아": ("피노", "PN", "피누"),
    "샤르도네": ("샤도", "chard", "샤도네"),
    "프리미에 크뤼": ("1er", "프크", "1er Cru"),
    "그랑 크뤼": ("GC", "그크"),
    "샤또네프 뒤 파프": ("CDP", "샤네뒤파프", "샤네프"),
    "꼬뜨 뒤 론": ("CDR", "꼬뒤론"),
    "브루넬로 디 몬탈치노": ("BDM", "브루넬로"),
    "키안티 클라시코": ("끼클", "CC", "키클"),
    "나파 밸리": ("나파", "napa"),
    "샤또": ("Ch.", "ch"),
    "블랑 드 블랑": ("BDB", "블드블"),
    "모스카토 다스티": ("모스카토", "모다스티"),
    "리제르바": ("리제르", "Rsv"),
    "말보로": ("말보",),
    "쉬라즈": ("쉬라", "SZ"),
}
KO_EN = {
    "소비뇽 블랑": "Sauvignon Blanc", "카베르네 소비뇽": "Cabernet Sauvignon", "피노 누아": "Pinot Noir",
    "샤르도네": "Chardonnay", "메를로": "Merlot", "쉬라즈": "Shiraz", "말벡": "Malbec", "리슬링": "Riesling",
    "말보로": "Marlborough", "나파 밸리": "Napa Valley", "샤블리": "Chablis", "바롤로": "Barolo", "브뤼": "Brut",
    "로제": "Rosé", "뀌베": "Cuvée", "리저브": "Reserve", "리제르바": "Riserva", "부르고뉴": "Bourgogne",
    "샤또": "Château", "키안티 클라시코": "Chianti Classico", "프로세코": "Prosecco", "그랑": "Grand",
}  # fmt: skip
POLITE = (" 주세요", " 부탁드립니다", " 보내주세요", "요", " 추가", " 부탁드려요", " 발주합니다", " plz")


@dataclass(frozen=True)
class Wine:
    """One item. `ko` and `en` are the words of its names without the bottle size, which is `size` ("" for 750 ml)."""

    id: str
    ko: tuple[str, ...]
    en: tuple[str, ...]
    producer: str
    producer_ko: str
    country: str
    size: str
    vintage: int | None


@dataclass(frozen=True)
class Draft:
    """A line in the making: its words, and the wines it may mean, of any vintage."""

    words: tuple[str, ...]
    wines: tuple[Wine, ...]
    decorated: bool = False


def load_wines(path: Path = HERE / "items.jsonl") -> list[Wine]:
    wines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        fields, ko, en = item["fields"], item["fields"]["name_ko"].split(), item["fields"]["name_en"].split()
        size = ko[-1] if item["attributes"]["volume_ml"] != 750 else ""
        if size:
            ko, en = ko[:-1], en[:-1]
        wines.append(
            Wine(item["id"], tuple(ko), tuple(en), fields["producer"], fields["producer_ko"],
                 item["attributes"]["country"], size, fields.get("vintage"))
        )  # fmt: skip
    return wines


def in_test(name: str) -> bool:
    """The split of a wine or of goods that are not carried, by a hash of the name: about half of them."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def in_split(wine: Wine, split: str) -> bool:
    return in_test(" ".join(wine.ko)) == (split == "test")


# ---- What a line may mean. A rendition is ambiguous where it makes the same words of another wine.


class Meaning:
    def __init__(self, wines: Sequence[Wine]) -> None:
        self.wines = wines

    def same(self, wine: Wine, render: Callable[[Wine], tuple[str, ...]]) -> tuple[Wine, ...]:
        words = render(wine)
        return tuple(w for w in self.wines if w.size == wine.size and render(w) == words)

    def containing(self, wine: Wine, words: Sequence[str]) -> tuple[Wine, ...]:
        """Wines of the same size whose names hold all the words; none where the words name another wine in full."""
        found = []
        for other in self.wines:
            names = ("".join(other.ko).lower(), "".join(other.en).lower())
            if other.size != wine.size or not all(any(w.lower() in name for name in names) for w in words):
                continue
            if other.ko != wine.ko and sorted(words) in (sorted(other.ko), sorted(other.en)):
                return ()
            found.append(other)
        return tuple(found)


# ---- Noise over words: which words the line has, in which order. None: this wine does not suit.

Rng = Random
WordNoise = Callable[[Wine, Meaning, Rng], "Draft | None"]


def exact_ko(wine: Wine, meaning: Meaning, _: Rng) -> Draft | None:
    return Draft(wine.ko, meaning.same(wine, lambda w: w.ko))


def exact_en(wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    words = wine.en
    if rng.random() < 0.6:
        words = tuple(hangul.strip_accents(w) for w in words)
    if rng.random() < 0.5:
        words = tuple(w.lower() for w in words)
    return Draft(words, meaning.same(wine, lambda w: w.en))


def partial(wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    words = wine.ko if rng.random() < 0.7 else wine.en
    if len(words) < 2:
        return None
    keep = sorted(rng.sample(range(len(words)), rng.randint(max(1, len(words) // 2), len(words) - 1)))
    kept = tuple(words[i] for i in keep)
    if sum(len(w) for w in kept) < 3:
        return None
    return Draft(kept, meaning.containing(wine, kept))


def word_order(wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    words = list(wine.ko if rng.random() < 0.7 else wine.en)
    at = rng.randrange(1, len(words)) if len(words) > 1 else 0
    moved = words[at:] + words[:at] if rng.random() < 0.6 else rng.sample(words, len(words))
    if moved == words:
        return None
    return Draft(tuple(moved), meaning.same(wine, lambda w: tuple(sorted(w.ko))))


def _replace(words: Sequence[str], table: dict[str, str]) -> tuple[str, ...]:
    text = f" {' '.join(words)} "
    for long, short in table.items():
        text = text.replace(f" {long} ", f" {short} ")
    return tuple(text.split())


def _initials(wine: Wine) -> tuple[str, ...]:
    """The producer as Latin initials: `lc 더 랩터 소비뇽 블랑`."""
    initials = "".join(hangul.strip_accents(w)[0].lower() for w in re.split(r"[\s-]+", wine.producer) if w[0].isalpha())
    rest = wine.ko[len(wine.producer_ko.split()) :]
    return (initials, *rest) if " ".join(wine.ko).startswith(wine.producer_ko + " ") and len(initials) > 1 else wine.ko


def _first_syllables(wine: Wine) -> tuple[str, ...]:
    """The producer as its words' first syllables: `레찰 더 랩터 소비뇽 블랑`."""
    producer = wine.producer_ko.split()
    if len(producer) < 2 or wine.ko[: len(producer)] != tuple(producer) or len(wine.ko) == len(producer):
        return wine.ko
    return ("".join(w[0] for w in producer), *wine.ko[len(producer) :])


def _cut(wine: Wine) -> tuple[str, ...]:
    return tuple(w[:2] if len(w) > 3 else w for w in wine.ko)


def abbreviation(wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    table = {long: rng.choice(short) for long, short in SHORT.items()}
    renders = (lambda w: _replace(w.ko, table), _initials, _first_syllables, _cut)
    render = rng.choice((renders[0], *renders))  # trade abbreviations are the commonest
    words = render(wine)
    return None if words == wine.ko or sum(map(len, words)) < 3 else Draft(words, meaning.same(wine, render))


def mixed(wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    """Some words Korean, some English: the producer, or the words everybody knows in both."""
    table = {ko: en if rng.random() < 0.5 else hangul.strip_accents(en).lower() for ko, en in KO_EN.items()}
    words = _replace(wine.ko, table)
    prefix = tuple(wine.producer_ko.split())
    if wine.ko[: len(prefix)] == prefix and len(wine.ko) > len(prefix) and rng.random() < 0.5:
        words = (*wine.producer.split(), *wine.ko[len(prefix) :])
    if words == wine.ko or not any(hangul.is_hangul(w) for w in words):
        return None
    return Draft(words, meaning.same(wine, lambda w: w.ko))


# ---- Noise over letters: the words stay, their spelling changes. None: nothing could be changed.

LetterNoise = Callable[[tuple[str, ...], Wine, Rng], "tuple[str, ...] | None"]


def _edit_words(words: tuple[str, ...], rng: Rng, suits: Callable[[str], bool], edit: Any) -> tuple[str, ...] | None:
    """One edit, or two in a long line, each in a word of its own."""
    places = [i for i, w in enumerate(words) if suits(w)]
    count = 2 if sum(len(words[i]) for i in places) >= 10 and rng.random() < 0.5 else 1
    changed = list(words)
    for i in rng.sample(places, min(count, len(places))):
        changed[i] = edit(changed[i], rng)
    return tuple(changed) if tuple(changed) != words else None


def typo_jamo(words: tuple[str, ...], _: Wine, rng: Rng) -> tuple[str, ...] | None:
    return _edit_words(words, rng, lambda w: hangul.is_hangul(w) and len(w) > 1, hangul.typo)


def typo_latin(words: tuple[str, ...], _: Wine, rng: Rng) -> tuple[str, ...] | None:
    return _edit_words(words, rng, lambda w: hangul.is_latin(w) and len(w) > 3, hangul.latin_typo)


def transliteration(words: tuple[str, ...], wine: Wine, rng: Rng) -> tuple[str, ...] | None:
    romance = wine.country in ("France", "Italy", "Spain", "Chile", "Argentina")
    changed = tuple(hangul.respell(" ".join(words), romance, rng).split())
    return changed if changed != words else None


def spacing(words: tuple[str, ...], _: Wine, rng: Rng) -> tuple[str, ...] | None:
    text = " ".join(words)
    style = rng.random()
    if style < 0.45:
        text = text.replace(" ", "")
    elif style < 0.75:
        text = "".join(c for c in text if c != " " or rng.random() < 0.5)
    else:
        inner = [i for i in range(1, len(text)) if text[i - 1 : i + 1].isalpha()]
        for i in sorted(rng.sample(inner, min(2, len(inner))), reverse=True):
            text = f"{text[:i]} {text[i:]}"
    changed = tuple(text.split())
    return changed if changed != words else None


def keyboard(words: tuple[str, ...], _wine: Wine, _rng: Rng) -> tuple[str, ...]:
    return tuple(hangul.flip_layout(w) for w in words)


# ---- Lines


def quantity_words(rng: Rng, plain: bool) -> tuple[str, int]:
    """The quantity as written, with the space before it, and its number. `plain` has no bare or joined number."""
    number = rng.choice((1, 2, 3, 4, 5, 6, 10, 12, 18, 24, 36, 48, 60, 120))
    forms = [" {}병", " {} 병", " {}박스", " {}cs", " {}개", " {}본"]
    if not plain:
        forms += [" x{}", " {}", " {}CS", " x {}", " - {}병", " {} box", " {}케이스", " *{}", " 수량 {}", " {}BT"]
    return rng.choice(forms).format(number), number


def finish(draft: Draft, wine: Wine, slice_: str, rng: Rng) -> dict[str, Any]:
    """Adds size, vintage, quantity and courtesy, and settles which ids the line may mean."""
    rich = draft.decorated
    text = " ".join((*draft.words, wine.size)).strip()
    vintage = wine.vintage if wine.vintage and rng.random() < (0.7 if rich else 0.1) else None
    if vintage:
        forms = [f"{text} {vintage}", f"{vintage} {text}", f"{text} {vintage}년"]
        if rich:
            forms += [f"{text} {vintage % 100:02d}년산", f"{text} {vintage}년산", f"{text} {vintage} 빈티지",
                      f"{text} '{vintage % 100:02d}", f"{text}({vintage})"]  # fmt: skip
        text = rng.choice(forms)
    quantity = None
    if rich or rng.random() < 0.4:
        ends_in_digit = text[-1].isdigit() or text[-1] == ")"
        words, quantity = quantity_words(rng, plain=not rich or ends_in_digit)
        text += words
        if rich and not words[-1].isdigit() and rng.random() < 0.4:
            text += rng.choice(POLITE)
    accept = sorted(w.id for w in draft.wines if vintage is None or w.vintage == vintage)
    return {"query": text, "accept": accept, "slice": slice_, "quantity": quantity, "vintage": vintage}


def unknown_line(text: str, wine: Wine, rng: Rng) -> dict[str, Any]:
    """A line that nothing in the catalogue answers; some of these are mistyped as well."""
    words = tuple(text.split())
    if rng.random() < 0.4:
        words = rng.choice((typo_jamo, spacing))(words, wine, rng) or words
    draft = Draft(words, (), decorated=rng.random() < 0.3)
    return finish(draft, replace(wine, size="", vintage=None), "unknown", rng)


def _then(draft: Draft | None, noise: LetterNoise, wine: Wine, rng: Rng) -> Draft | None:
    words = noise(draft.words, wine, rng) if draft else None
    return replace(draft, words=words) if draft and words else None


def combined(wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    """Words, then letters, then the rest: two or three kinds of noise at once."""
    draft = rng.choice((partial, abbreviation, mixed, word_order, exact_ko))(wine, meaning, rng)
    draft = _then(draft, rng.choice((typo_jamo, transliteration)), wine, rng)
    if draft and rng.random() < 0.5:
        draft = _then(draft, spacing, wine, rng)
    return replace(draft, decorated=True) if draft else None


def make_draft(slice_: str, wine: Wine, meaning: Meaning, rng: Rng) -> Draft | None:
    words: dict[str, WordNoise] = {
        "exact_ko": exact_ko, "exact_en": exact_en, "partial": partial, "word_order": word_order,
        "abbreviation": abbreviation, "mixed": mixed, "combined": combined,
    }  # fmt: skip
    letters: dict[str, tuple[WordNoise, LetterNoise]] = {
        "typo_jamo": (exact_ko, typo_jamo),
        "typo_latin": (exact_en, typo_latin),
        "transliteration": (exact_ko, transliteration),
        "spacing": (rng.choice((exact_ko, exact_ko, exact_en)), spacing),
        "keyboard": (rng.choice((exact_ko, exact_ko, exact_en)), keyboard),
    }
    if slice_ == "quantity_vintage":
        draft = rng.choice((exact_ko, exact_ko, exact_en, partial))(wine, meaning, rng)
        return replace(draft, decorated=True) if draft else None
    if slice_ in words:
        return words[slice_](wine, meaning, rng)
    before, noise = letters[slice_]
    return _then(before(wine, meaning, rng), noise, wine, rng)


CLASSES = (
    "exact_ko", "exact_en", "partial", "word_order", "typo_jamo", "typo_latin", "abbreviation", "mixed", "spacing",
    "keyboard", "transliteration", "quantity_vintage", "combined", "unknown",
)  # fmt: skip


def class_lines(slice_: str, wines: Sequence[Wine], split: str, rng: Rng, count: int) -> Iterator[dict[str, Any]]:
    """`count` different lines of one class, going round the split's wines in random order."""
    meaning, mine = Meaning(wines), [w for w in wines if in_split(w, split)]
    goods = (HERE / "not_carried.txt").read_text(encoding="utf-8").splitlines()
    absent = [g for g in goods if in_test(g) == (split == "test")]
    seen: set[str] = set()
    while len(seen) < count:
        for wine in rng.sample(mine, len(mine)):
            if slice_ == "unknown":
                case = unknown_line(absent[len(seen) % len(absent)], wine, rng)
            else:
                draft = make_draft(slice_, wine, meaning, rng)
                if not draft or not draft.wines or not _clear(draft, split):
                    continue
                case = finish(draft, wine, slice_, rng)
            if case["query"] not in seen and len(seen) < count:
                seen.add(case["query"])
                yield case


def _clear(draft: Draft, split: str) -> bool:
    """Few enough meanings, all of this split."""
    return len({w.ko for w in draft.wines}) <= MAX_MEANINGS and all(in_split(w, split) for w in draft.wines)


def generate(seed: int, split: str, wines: Sequence[Wine], count: int = LINES_PER_CLASS) -> Iterator[dict[str, Any]]:
    """`count` lines of each class for split "dev" or "test"; the same arguments always give the same lines."""
    for slice_ in CLASSES:
        yield from class_lines(slice_, wines, split, Random(f"{seed} {split} {slice_}"), count)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print noisy order lines, one JSON object a line.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--split", choices=("dev", "test"), required=True)
    parser.add_argument("--per-class", type=int, default=LINES_PER_CLASS, help="lines of each noise class")
    arguments = parser.parse_args()
    for case in generate(arguments.seed, arguments.split, load_wines(), arguments.per_class):
        sys.stdout.buffer.write((json.dumps(case, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
