"""The rules source: noisy names, typed in Korean or English, to items, with a calibrated score.

Satisfies `serving.ports.Source`; built by the wiring from a rules component and the catalogue's items. Jamo and Latin
n-grams propose spellings, weighted edit distances compare them, a tiling joins the pieces of a query into words, and a
logistic regression over a few features makes one probability of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.ports import Expansions, Hits, Mask
from serving.retrieve.rules import spelling
from serving.retrieve.rules.evidence import FULL, PLAIN, Evidence, probability, weigh
from serving.retrieve.rules.index import Aliases, Analysed, Index, analyse
from serving.retrieve.rules.options import read_options
from serving.retrieve.rules.reading import Reader
from serving.schema import Item, Query

ITEM_NUMBER = 0.99  # the score of an item whose own id was typed
SHORTEST_ID = 5
_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class _State:
    """What a search reads; replaced as a whole, never changed."""

    analysed: tuple[Analysed, ...]
    index: Index
    reader: Reader
    expansions: Expansions


class RulesSource:
    """Row i is `items[i]`. `weights`: field -> weight; a field of at least half the heaviest weight names the item.

    `aliases`: canonical word -> its spellings. `options`: see `serving.retrieve.rules.options`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        weights: Mapping[str, float],
        aliases: Mapping[str, Sequence[str]],
        options: Mapping[str, float],
    ) -> None:
        self._options = read_options(options)
        self._weights = dict(weights)
        self._aliases = Aliases(aliases if self._options.aliases else {})
        self._state = self._build(tuple(self._analyse(item) for item in items), {})

    def search(self, queries: Sequence[Query], allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        """As `serving.ports.Source`; a score is the probability, 0..1, that the row is what was meant."""
        state = self._state
        return [self._search(state, query, mask, top_k) for query, mask in zip(queries, allowed, strict=True)]

    def add(self, first_row: int, items: Sequence[Item]) -> None:
        """As `serving.ports.Source`. Only the new items are analysed; the index over all is made anew."""
        state = self._state
        kept = state.analysed[:first_row]
        gap = tuple(self._analyse(Item("", {})) for _ in range(first_row - len(kept)))
        added = tuple(self._analyse(item) for item in items)
        rows = kept + gap + added + state.analysed[first_row + len(added) :]
        self._state = self._build(rows, state.expansions)

    def set_expansions(self, expansions: Expansions) -> None:
        """user -> token as that user writes it -> the words it stands for. Replaces all there were."""
        folded = {user: {spelling.normalise(token): words for token, words in tokens.items()}
                  for user, tokens in expansions.items()}  # fmt: skip
        self._state = replace(self._state, expansions=folded)

    def evidence(self, query: Query, allowed: Mask | None = None) -> Evidence:
        """What the score of each candidate follows from; to calibrate and to explain."""
        return self._evidence(self._state, query, allowed)

    def _evidence(self, state: _State, query: Query, allowed: Mask | None) -> Evidence:
        user = query.user if self._options.expansions else None
        reading = state.reader.read(query.text, state.expansions.get(user, _NONE) if user else _NONE)
        return weigh(state.index, reading, allowed, self._options.jamo)

    def _search(self, state: _State, query: Query, allowed: Mask | None, top_k: int) -> Hits:
        if (row := _named_by_id(state.index, query.text, allowed)) is not None:
            return Hits(np.array([row], np.int64)[:top_k], np.array([ITEM_NUMBER], np.float32)[:top_k])
        evidence = self._evidence(state, query, allowed)
        scores = probability(evidence, FULL if self._options.jamo else PLAIN)
        return Hits(evidence.rows[:top_k], scores[:top_k].astype(np.float32))

    def _analyse(self, item: Item) -> Analysed:
        return analyse(item, self._weights, self._aliases, self._options.jamo)

    def _build(self, analysed: tuple[Analysed, ...], expansions: Expansions) -> _State:
        index = Index(analysed, self._options.jamo, self._options.jamo and self._options.phonetic)
        return _State(analysed, index, Reader(index, self._options), expansions)


def _named_by_id(index: Index, text: str, allowed: Mask | None) -> int | None:
    """The row whose item number is among the words of `text`. Short ids could be any number or word of an order."""
    for word in text.split():
        row = index.row_of.get(word.casefold()) if len(word) >= SHORTEST_ID else None
        if row is not None and (allowed is None or (row < len(allowed) and allowed[row])):
            return row
    return None
