"""Intent, entities and filters by the words of a lexicon: no model, microseconds, the same answer every time.

The engine `rules`, and what engine `llm` falls back on. Words are found as they are spelled (spaces do not matter much
in Korean), then as they are mistyped: by weighted jamo distance, by the other keyboard layout, by their initial
consonants. What remains is left to retrieval. Pure.

Confidence is the share of the letters that the lexicon explains, each as surely as it was matched; half of it where
neither an intent nor an entity was found. It is no probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from serving.components.lexicon import Lexicon
from serving.retrieve.rules import spelling
from serving.schema import Query, Understood
from serving.understand.amounts import AmountReader
from serving.understand.keyboard import flip_keyboard
from serving.understand.reading import Reading, understood

LIKE = 0.82
"""Jamo similarity from which a word is a mistyped spelling: one wrong letter of six, or one that is alike of five."""
FEWEST_LETTERS = 4
OTHER_LAYOUT, INITIALS = 0.95, 0.85
LONGEST_TEXT = 500
"""Characters that are read; what is longer says no more about what somebody wants."""

_PARTICLES = [
    "이랑은",
    "이랑",
    "하고",
    "한테",
    "에서",
    "에는",
    "에도",
    "으로",
    "이나",
    "이라도",
    "라도",
    "까지",
    "부터",
    "보다",
    "처럼",
    "같은",
    "같이",
    "이요",
    "이여",
    "이고",
    "인데",
    "이면",
    "이든",
    "든지",
    "집은",
    "집이",
    "집을",
    "집도",
    "집에",
    "집으로",
    "집",
    "가게",
    "점",
    "류",
    "쪽",
    "근처",
    "은",
    "는",
    "이",
    "가",
    "을",
    "를",
    "에",
    "의",
    "도",
    "만",
    "로",
    "랑",
    "과",
    "와",
    "나",
    "요",
    "야",
    "좀",
    "네",
    "데",
    "먹을",
    "먹고",
    "먹자",
    "파는",
    "되는",
    "돼는",
    "있는",
    "없는",
]
_TAIL = "(?:" + "|".join(sorted(map(re.escape, _PARTICLES), key=len, reverse=True)) + ")*"
_NOT = re.compile(r"\s*(?:집|은|는|을|를|이|가)?\s*(?:말고|빼고|제외|싫|아닌|except|no\s+more)")
_HANGUL = "가-힣"
_WORD = re.compile(rf"[{_HANGUL}]+|[a-z]+|[\u1100-\u1112]+|\d+")
_LETTER = re.compile(r"\w")


class _Found(NamedTuple):
    start: int
    end: int
    kind: str
    value: str
    word: str
    likeness: float
    negated: bool = False


class _Text:
    """A normalised text, and how surely each of its characters is explained."""

    def __init__(self, text: str) -> None:
        self.text = spelling.normalise(text)[:LONGEST_TEXT]
        self.sure = [0.0] * len(self.text)

    def take(self, start: int, end: int, sure: float = 1.0) -> None:
        self.sure[start:end] = [max(sure, one) for one in self.sure[start:end]]

    def is_free(self, start: int, end: int) -> bool:
        return not any(self.sure[start:end])

    def take_all(self, patterns: Iterable[re.Pattern[str]]) -> bool:
        """Explain whatever matches; whether anything did."""
        hit = False
        for pattern in patterns:
            for found in pattern.finditer(self.text):
                if found.end() > found.start():
                    self.take(*found.span())
                hit = True
        return hit

    def free_words(self) -> Iterator[re.Match[str]]:
        return (word for word in _WORD.finditer(self.text) if self.is_free(*word.span()))

    @property
    def explained(self) -> float:
        letters = [sure for char, sure in zip(self.text, self.sure, strict=True) if _LETTER.match(char)]
        return sum(letters) / len(letters) if letters else 0.0


class RulesEngine:
    """Satisfies `serving.ports.Understander`."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        spec = lexicon.spec
        self._amounts = {kind: AmountReader(amount.units) for kind, amount in spec.amounts.items()}
        self._relatives = {name: [_loose(word) for word in one.words] for name, one in spec.relative.items()}
        self._follow_up = [re.compile(pattern) for pattern in spec.follow_up]
        self._intents = {n: [re.compile(pattern) for pattern in one.patterns] for n, one in spec.intents.items()}
        self._fillers = [(w, _loose(w, whole=True)) for w in sorted(spec.fillers, key=len, reverse=True)]
        self._meanings = {spelling.normalise(word): said for word, said in lexicon.spellings.items()}
        longest_first = sorted(self._meanings, key=len, reverse=True)
        self._spelled = [(word, _loose(word)) for word in longest_first]
        bare = {word.replace(" ", ""): word for word in self._meanings}
        self._written = {w: _symbols(w) for w in bare if len(spelling.letters(w)) >= FEWEST_LETTERS}
        self._bare = bare
        self._initials: dict[str, set[str]] = {}
        for word in bare:
            self._initials.setdefault(spelling.first_consonants(word), set()).add(word)
        self._nearest = lru_cache(maxsize=8192)(self._find_nearest)
        self._read = lru_cache(maxsize=4096)(self._read_anew)

    def understand(self, queries: Sequence[Query]) -> list[list[Understood]]:
        return [[understood(self.read(query.text), query, self.lexicon)] for query in queries]

    def read(self, raw: str) -> Reading:
        """What the text says by itself."""
        return self._read(raw[:LONGEST_TEXT])

    def _read_anew(self, raw: str) -> Reading:
        text = _Text(raw)
        amounts: dict[str, Any] = {}
        for kind, reader in self._amounts.items():
            for amount in reader.find(text.text):
                if text.is_free(amount.start, amount.end):
                    text.take(amount.start, amount.end)
                    amounts[kind] = {**amounts.get(kind, {}), **amount.bounds}
        relatives = tuple(name for name, patterns in self._relatives.items() if text.take_all(patterns))
        found = self._as_spelled(text)
        follows = text.take_all(self._follow_up)
        intents = {name: sum(bool(p.search(text.text)) for p in patterns) for name, patterns in self._intents.items()}
        intent = max(intents, key=lambda name: intents[name])
        said = intent if intents[intent] else ""
        for patterns in self._intents.values():
            text.take_all(patterns)
        text.take_all(pattern for word, pattern in self._fillers if word[0] in text.text)
        found += self._as_mistyped(text)
        entities = {**_entities(found), **amounts}
        explained = text.explained if said or entities or relatives else text.explained / 2
        exact = frozenset({one.kind for one in found if one.likeness == 1.0} | set(amounts))
        words = {(one.kind, one.value): one.word for one in found}
        return Reading(said, entities, words, exact, relatives, follows, _rest(text), explained)

    def _as_spelled(self, text: _Text) -> list[_Found]:
        found: list[_Found] = []
        for word, pattern in self._spelled:
            if word[0] not in text.text:
                continue  # most words: far quicker than to look for the whole of them
            for match in pattern.finditer(text.text):
                if text.is_free(*match.span()):
                    text.take(*match.span())
                    found += self._meant(word, match.start(), match.end(), text, 1.0)
        return found

    def _as_mistyped(self, text: _Text) -> list[_Found]:
        found: list[_Found] = []
        for token in list(text.free_words()):
            word, likeness, length = self._nearest(token[0])
            if likeness > 0:
                end = token.end() if length == 0 else token.start() + length
                text.take(token.start(), token.end(), likeness)
                found += self._meant(self._bare[word], token.start(), end, text, likeness)
        return found

    def _meant(self, word: str, start: int, end: int, text: _Text, likeness: float) -> list[_Found]:
        negation = _NOT.match(text.text, end)
        if negation:
            text.take(*negation.span())
        return [_Found(start, end, k, v, word, likeness, negation is not None) for k, v in self._meanings[word]]

    def _find_nearest(self, token: str) -> tuple[str, float, int]:
        """(spelling without spaces, likeness, characters of the token that it is); likeness 0 for none."""
        if (typed := spelling.initials(token)) is not None:
            meant = self._initials.get(typed, set())
            return (next(iter(meant)), INITIALS, 0) if len(token) > 1 and len(meant) == 1 else ("", 0.0, 0)
        if token.isascii() and (flipped := flip_keyboard(token)) is not None:
            for length in range(len(flipped), 1, -1):
                if flipped[:length] in self._bare and re.fullmatch(_TAIL, flipped[length:]):
                    return flipped[:length], OTHER_LAYOUT, 0
        best = ("", 0.0, 0)
        for length in range(len(token), 1, -1):
            if token.isascii() and length < len(token):
                break
            if not re.fullmatch(_TAIL, token[length:]) or len(spelling.letters(token[:length])) < FEWEST_LETTERS:
                continue
            nearest = process.extractOne(
                _symbols(token[:length]), self._written, scorer=Levenshtein.normalized_similarity, score_cutoff=LIKE
            )
            if nearest is not None and nearest[1] > best[1]:
                best = (nearest[2], float(nearest[1]), length)
        return best


def _entities(found: Sequence[_Found]) -> dict[str, Any]:
    """In the order they were said; what was said and taken back (`치킨 말고 피자`) is left out where something else of
    its kind was named, else ruled out."""
    named: dict[str, list[str]] = {}
    taken_back: dict[str, list[str]] = {}
    for one in sorted(found):
        values = (taken_back if one.negated else named).setdefault(one.kind, [])
        if one.value not in values:
            values.append(one.value)
    entities: dict[str, Any] = {kind: v[0] if len(v) == 1 else v for kind, v in named.items()}
    for kind, values in taken_back.items():
        entities.setdefault(kind, {"not": values})
    return entities


def _rest(text: _Text) -> str:
    """The words that nothing explains. What hangs on to something explained is an ending, not a word."""
    words = []
    for word in text.free_words():
        if not (word.start() and text.sure[word.start() - 1] and re.fullmatch(_TAIL, word[0])):
            words.append(word[0])
    return " ".join(words)


def _symbols(word: str) -> str:
    return spelling.symbols(spelling.letters(word))


def _loose(word: str, *, whole: bool = False) -> re.Pattern[str]:
    """Where a word stands in a normalised text. Long Korean words may be written apart; words of one syllable, and
    `whole` ones, stand alone but for an ending."""
    plain = spelling.normalise(word)
    if plain.isascii():
        return re.compile(rf"(?<![a-z]){re.escape(plain)}(?:s)?(?![a-z])")
    letters = plain.replace(" ", "")
    if len(letters) == 1 or whole:
        apart = r"\s?".join(map(re.escape, plain.split(" ")))
        return re.compile(rf"(?<![{_HANGUL}]){apart}(?={_TAIL}(?![{_HANGUL}]))" if not whole else
                          rf"(?<![{_HANGUL}]){apart}{_TAIL}(?![{_HANGUL}])")  # fmt: skip
    together = re.escape(letters)
    if len(letters) < 3 and " " not in plain:
        return re.compile(together)
    apart = r"\s?".join(map(re.escape, letters))
    return re.compile(rf"{together}|(?<![{_HANGUL}]){apart}")
