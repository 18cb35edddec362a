"""What a selection teaches: which words of the chosen item an abbreviation in the user's own line stands for.

Called by the feedback flow, per client; the result reaches `RulesSource.set_expansions`. Pure, and rather silent than
wrong: a token is learned only if it could be an abbreviation of words that the line does not name otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import LCSseq, Levenshtein

from serving.retrieve.rules import spelling
from serving.retrieve.rules.numbers import take_facts
from serving.retrieve.rules.phonetics import phonetic
from serving.schema import Item
from serving.understand.order_lines import read_line

LONGEST_TOKEN = 12  # letters; longer ones are names, not abbreviations
LONGEST_SPAN = 4  # words
EXPLAINED = 0.7  # a token this like a word of the item needs no expansion
SHORTEST_SOUND = 5  # symbols of a phonetic code; two consonants alone sound like too much
SAME_SOUND = 0.5  # spans of two scripts this alike name the same words


class _Span(NamedTuple):
    field: int
    start: int
    end: int


def learn_expansions(raw: str, item: Item, fields: Sequence[str] = ("name_ko", "name_en")) -> dict[str, str]:
    """Token -> words of the first of `fields` that has them, for each token of `raw` that abbreviates the item.

    "lc 말보로" with 레이크 찰리스 말보로 selected teaches {"lc": "레이크 찰리스"}. Quantities, vintages, volumes and
    polite words teach nothing, nor does a line that only repeats the item's words.
    """
    texts = [spelling.normalise(take_facts(str(item.fields[f]))[1]) for f in fields if item.fields.get(f)]
    named = [spelling.words(text) for text in texts]
    tokens = [spelling.normalise(chunk).strip(".,;:!?()[]") for chunk in take_facts(read_line(raw).text)[1].split()]
    tokens = [token for token in tokens if token and not any(c.isdigit() for c in token)]
    covered: set[tuple[int, int]] = set()
    unexplained: list[str] = []
    for token in tokens:
        places = _explained_by(token, named)
        covered |= places
        if not places and spelling.words(token) == [token] and 2 <= len(token) <= LONGEST_TOKEN:
            unexplained.append(token)
    _cover_other_fields(named, covered)
    if not tokens or len(unexplained) > 2:
        return {}
    learned: dict[str, str] = {}
    for token in unexplained:
        span = _abbreviated(token, named, covered)
        if span is None and len(unexplained) == 1 and covered:
            span = _only_leading_gap(named, covered)
        if span is not None:
            covered |= {(span.field, place) for place in range(span.start, span.end)}
            span = _in_first_field(span, named)
            learned[token] = " ".join(named[span.field][span.start : span.end])
    return learned


def _alike(a: str, b: str) -> float:
    """Likeness of two words as written or, across scripts, as spoken; 0..1."""
    spelled = Levenshtein.normalized_similarity(
        spelling.symbols(spelling.letters(a)), spelling.symbols(spelling.letters(b))
    )
    return max(spelled, _sound_alike(a, b))


def _spans(named: Sequence[Sequence[str]]) -> list[_Span]:
    return [_Span(f, start, end) for f, words in enumerate(named) for start in range(len(words))
            for end in range(start + 1, min(start + LONGEST_SPAN, len(words)) + 1)]  # fmt: skip


def _explained_by(token: str, named: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
    """(field, place) of the words that the token spells, nearly spells, or begins."""
    found: set[tuple[int, int]] = set()
    for field in range(len(named)):
        scored = [(_explains(token, named[field][s.start : s.end]), s) for s in _spans(named) if s.field == field]
        likeness, span = max(scored, key=lambda pair: pair[0], default=(0.0, _Span(field, 0, 0)))
        if likeness >= EXPLAINED:
            found |= {(field, place) for place in range(span.start, span.end)}
    return found


def _explains(token: str, words: Sequence[str]) -> float:
    begins = len(words) == 1 and len(token) >= (2 if spelling.is_hangul(token) else 3) and words[0].startswith(token)
    return max(_alike(token, "".join(words)), EXPLAINED if begins else 0.0)


def _cover_other_fields(named: Sequence[Sequence[str]], covered: set[tuple[int, int]]) -> None:
    """A word that was named in one script is named in the other too."""
    for field, place in sorted(covered):
        for other, words in enumerate(named):
            covered |= {(other, p) for p, word in enumerate(words)
                        if other != field and _alike(word, named[field][place]) >= EXPLAINED}  # fmt: skip


def _abbreviated(token: str, named: Sequence[Sequence[str]], covered: set[tuple[int, int]]) -> _Span | None:
    """The longest span, nothing of it named otherwise, that has the token as initials or as skeleton."""
    free = [s for s in _spans(named) if not any((s.field, place) in covered for place in range(s.start, s.end))]
    fitting = [s for s in free if _is_initials(token, named[s.field][s.start : s.end])]
    fitting = fitting or [s for s in free if _is_skeleton(token, "".join(named[s.field][s.start : s.end]))]
    return min(fitting, key=lambda s: (s.start, s.field, s.start - s.end), default=None)


def _is_initials(token: str, words: Sequence[str]) -> bool:
    if len(words) < 2:
        return False
    consonants = spelling.initials(token)
    joined = "".join(words)
    return token == "".join(word[0] for word in words) or (
        consonants is not None and consonants in (spelling.first_consonants(joined), _word_consonants(words))
    )


def _word_consonants(words: Sequence[str]) -> str:
    return "".join(spelling.first_consonants(word[0]) for word in words)


def _is_skeleton(token: str, joined: str) -> bool:
    """clby for cloudybay, 클베 for 클라우디베이: the letters in their order, the first one first."""
    return len(token) >= 2 and token[0] == joined[0] and LCSseq.similarity(token, joined) == len(token) and (
        len(token) >= 3 or spelling.is_hangul(token)
    )  # fmt: skip


def _only_leading_gap(named: Sequence[Sequence[str]], covered: set[tuple[int, int]]) -> _Span | None:
    """The unnamed words at the head of the first field, if all that follows them was named."""
    places = [place for place in range(len(named[0])) if (0, place) not in covered] if named else []
    if 0 < len(places) <= LONGEST_SPAN and places == list(range(len(places))) and len(places) < len(named[0]):
        return _Span(0, 0, len(places))
    return None


def _in_first_field(span: _Span, named: Sequence[Sequence[str]]) -> _Span:
    """The words of the first field that sound like the span; the span itself where none do."""
    if span.field == 0:
        return span
    joined = "".join(named[span.field][span.start : span.end])
    first = [s for s in _spans(named[:1]) if _sound_alike("".join(named[0][s.start : s.end]), joined) >= SAME_SOUND]
    return max(first, key=lambda s: _sound_alike("".join(named[0][s.start : s.end]), joined), default=span)


def _sound_alike(a: str, b: str) -> float:
    codes = phonetic(a), phonetic(b)
    if min(map(len, codes)) < SHORTEST_SOUND:
        return 0.0
    return Levenshtein.normalized_similarity(*codes)
