"""A query as the pieces to look for: expanded, flipped to the other layout if it reads better, cut into known words.

Called by `source`. Pure; reads an `Index`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from serving.retrieve.rules import spelling
from serving.retrieve.rules.index import Index
from serving.retrieve.rules.match import Matches, match
from serving.retrieve.rules.numbers import Facts, says_rose, take_facts
from serving.retrieve.rules.options import Options
from serving.retrieve.rules.spoken import as_written
from serving.understand.keyboard import flip_keyboard

BETTER = 0.1  # by how much the other layout must read better
READABLE = 0.95  # a run that reads better is not tried in the other layout
SURE = 0.85  # a piece this like a spelling weighs what the spelling weighs
_SPACED = re.compile(r"(?<!\S)\S(?:\s+\S){3,}(?!\S)")  # l a k e: single characters apart are one word
MOST_PIECES, MOST_NOTES = 16, 3
_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|//.*")  # a note: its words count where they are surely of the catalogue
_LIKELY_YEAR = re.compile(r"[0-3]\d년?")  # where no item is of that year it says nothing
_STRAY_JAMO = re.compile("[\u1100-\u11ff]")
ALIEN = 0.6  # a piece less like any spelling is of no item
_EDGES = ".,;:!?()[]"
LONGEST_WORD = 64  # characters; what is longer is cut off
# Words of orders, not of items: where no item has them they are left out.
_ORDER_WORDS = """
    와인 병 본 박스 상자 케이스 주세요 부탁 드립니다 지난번 지난번에 저번 저번에 어제 그때 시킨 주문한 그거 그걸로
    다시 같은 거 것 걸로 좀 더 혹시 재고 남은 그 이 저 있는 있으면 전에 까지 먼저 우선 일단 추가 추가로 급 긴급 마감
    오늘 내일 이번 이번에 다음 나 도 은 는 을 를 로 으로 만 씩 짜리 사이즈 종류 정도 하나 꼭 주문 발주 문의 견적 가격
    wine wines cs case ctn ea btl bottle bottles please the a an of and with for my our usual again same last time that
"""
FILLER = frozenset(_ORDER_WORDS.split())


@dataclass(slots=True)
class Reading:
    """`weights[i]` is what piece i counts; `spans` maps (first piece, one past the last) to what it may stand for."""

    pieces: list[str]
    facts: Facts
    weights: list[float] = field(default_factory=list)
    alien: float = 0.0  # how much of the weights is of words that no item resembles
    spans: dict[tuple[int, int], Matches] = field(default_factory=dict)


class Reader:
    """Reads queries against one index."""

    def __init__(self, index: Index, options: Options) -> None:
        self._index = index
        self._options = options
        self._match = lru_cache(maxsize=8192)(lambda word: match(index, word, options))

    def read(self, text: str, expansions: Mapping[str, str]) -> Reading:
        """`expansions`: normalised token -> the words it stands for."""
        plain = _SPACED.sub(lambda found: "".join(found[0].split()), unicodedata.normalize("NFKC", text))
        facts, rest = take_facts(plain)
        pieces = self._pieces(self._telling(_ASIDE.sub(" ", rest), expansions), expansions)
        noted = [self._pieces(note.split(), expansions) for note in _ASIDE.findall(rest)[:MOST_NOTES]]
        pieces += [p for note in noted if not pieces or all(self._match(p).best >= SURE for p in note) for p in note]
        reading = Reading(pieces[:MOST_PIECES], facts._replace(rose=facts.rose or says_rose(pieces)))
        self._find_spans(reading)
        return reading

    def _pieces(self, chunks: Sequence[str], expansions: Mapping[str, str]) -> list[str]:
        runs: list[str] = []
        for chunk in chunks:
            whole = spelling.normalise(chunk).strip(_EDGES)
            runs += [whole] if whole in expansions else [run[:LONGEST_WORD] for run in spelling.words(chunk)]
        del runs[MOST_PIECES:]
        cuts = [self._cut(run.casefold()) for run in runs]
        if self._options.keyboard:
            cuts = self._other_layout(runs, cuts)
        for place, run in enumerate(runs):
            if run.casefold() in expansions:
                cuts[place] = spelling.words(spelling.normalise(expansions[run.casefold()]))
        return [self._as_written(piece) for cut in cuts for piece in cut]

    def _as_written(self, piece: str) -> str:
        """What the piece spells out by the names of letters or digits, if that is a known spelling and it is none."""
        if not self._options.jamo or self._match(piece).best >= READABLE:
            return piece
        is_known = self._index.is_word if len(piece) < 3 else self._index.entry_of.__contains__
        return next((form for form in as_written(piece) if is_known(form)), piece)

    def _telling(self, text: str, expansions: Mapping[str, str]) -> list[str]:
        """The words of the text but those of orders, unless a neighbour makes a name of them; all if none is left."""
        known = self._index.entry_of
        chunks = spelling.runs_text(text).split()
        plain = [spelling.normalise(chunk).strip(_EDGES) for chunk in chunks]
        kept = []
        for place, (chunk, word) in enumerate(zip(chunks, plain, strict=True)):
            beside = [word + after for after in plain[place + 1 : place + 2]]
            beside += [before + word for before in plain[max(0, place - 1) : place]]
            filler = word in FILLER and not any(joined in known for joined in beside)
            unknown_year = _LIKELY_YEAR.fullmatch(word) and word not in known
            if word in expansions or not (filler or unknown_year):
                kept.append(chunk)
        return kept or chunks

    def _other_layout(self, runs: Sequence[str], cuts: list[list[str]]) -> list[list[str]]:
        """The cuts, flipped where the other layout reads clearly better. Once one run was flipped, so are the runs
        beside it that read no worse that way: a short word alone is no evidence, but the layout was the wrong one."""
        as_typed = [self._readable(cut) for cut in cuts]
        flipped: list[list[str]] = [[] for _ in runs]
        for place, run in enumerate(runs):
            other = flip_keyboard(run) if as_typed[place] < READABLE else None
            if other and other != run.casefold():
                flipped[place] = self._cut(other)
        gains = [self._readable(f) - a if f else -1.0 for f, a in zip(flipped, as_typed, strict=True)]
        telling = (len(run) > 2 or _STRAY_JAMO.search(run) for run in runs)
        if not any(gain > BETTER and is_long for gain, is_long in zip(gains, telling, strict=True)):
            return cuts
        return [f if gain >= 0 else cut for f, gain, cut in zip(flipped, gains, cuts, strict=True)]

    def _readable(self, pieces: list[str]) -> float:
        """0..1: how well the pieces match known spellings, by length."""
        return sum(self._match(p).best * len(p) for p in pieces) / max(1, sum(map(len, pieces)))

    def _cut(self, word: str) -> list[str]:
        """Known words inside `word`, and what is left between them, in order; `word` itself if there are too few."""
        shortest = 2 if spelling.is_hangul(word) else 3
        is_word = self._index.is_word
        if not self._options.jamo or is_word(word) or word[0].isdigit() or len(word) < 2 * shortest:
            return [word]
        # best[j]: (letters inside known words less a toll per word, where the last piece starts, is it known)
        best: list[tuple[float, int, bool]] = [(0.0, 0, True)]
        for end in range(1, len(word) + 1):
            options = [(best[end - 1][0], end - 1, False)]
            for start in range(max(0, end - self._index.longest_form), end - shortest + 1):
                if is_word(word[start:end]):
                    options.append((best[start][0] + (end - start) - 0.6, start, True))
            best.append(max(options))
        pieces: list[str] = []
        end, gap_end = len(word), len(word)
        inside = 0
        while end:
            _, start, is_known = best[end]
            if is_known:
                pieces += [word[end:gap_end]] * (end < gap_end) + [word[start:end]]
                inside += end - start
                gap_end = start
            end = start
        pieces += [word[:gap_end]] * (gap_end > 0)
        return pieces[::-1] if inside >= len(word) * max(0.4, self._match(word).best) else [word]

    def _find_spans(self, reading: Reading) -> None:
        pieces = reading.pieces
        found = [self._match(p) for p in pieces]
        reading.spans = {(i, i + 1): m for i, m in enumerate(found)}
        reading.weights = [self._weight(p, m) for p, m in zip(pieces, found, strict=True)]
        if not self._options.jamo:
            return
        for start in range(len(pieces)):
            for end in range(start + 2, min(start + 4, len(pieces)) + 1):
                joined = "".join(pieces[start:end])
                doubtful = min(m.best for m in found[start:end]) < SURE
                if joined in self._index.entry_of or (doubtful and len(joined) <= 24):
                    matches = self._match(joined)
                    if matches.best > 0.5:
                        reading.spans[start, end] = matches
                        self._weigh_joined(reading, start, end, matches)
        likest = [max(m.best for (a, b), m in reading.spans.items() if a <= i < b) for i in range(len(pieces))]
        reading.alien = sum(w for w, p, best in zip(reading.weights, pieces, likest, strict=True)
                            if best < ALIEN and not p[0].isdigit())  # fmt: skip

    def _weight(self, piece: str, matches: Matches) -> float:
        """What a piece counts: as much as the spelling it is like; the more the longer where it is like none."""
        unknown = min(1.0, len(spelling.letters(piece)) / 6)
        if piece[0].isdigit():
            unknown = 0.1 if len(piece) < 3 else 0.5
        if not len(matches.worths):
            return unknown
        top = int(np.argmax(matches.worths))
        worth, mass = float(matches.worths[top]), float(self._index.mass[matches.entries[top]])
        return worth * mass + (1 - worth) * unknown

    def _weigh_joined(self, reading: Reading, start: int, end: int, matches: Matches) -> None:
        """Pieces of one word that was written apart weigh together what the word weighs."""
        apart = sum(reading.spans[i, i + 1].best * len(reading.pieces[i]) for i in range(start, end))
        apart /= sum(len(p) for p in reading.pieces[start:end])
        if matches.best > max(SURE, apart + BETTER):
            scale = float(self._index.mass[matches.entries[np.argmax(matches.worths)]])
            scale /= sum(reading.weights[start:end])
            for i in range(start, end):
                reading.weights[i] *= scale
