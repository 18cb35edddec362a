"""Cuts a text into sentences while it comes, so that each can be judged before it is sent. Used by the generator."""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_SENTENCE_CHARS = 400
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?。！？…]+[\"'”’)\]]*(?=\s)|\n)\s*", re.S)


def sentences_of(text: str) -> list[str]:
    """Of a text that is there as a whole."""
    cut = Sentences()
    return [*cut.add(text), cut.rest()]


class Sentences:
    """Cuts a text that comes in pieces into sentences; together they are the text."""

    def __init__(self) -> None:
        self._rest = ""

    def add(self, piece: str) -> Iterator[str]:
        """The sentences that this piece completes."""
        self._rest += piece
        while match := _SENTENCE.match(self._rest):
            self._rest = self._rest[match.end() :]
            yield match.group()
        if len(self._rest) > LONGEST_SENTENCE_CHARS:
            yield self.rest()

    def rest(self) -> str:
        """What is left, which is no longer kept."""
        rest, self._rest = self._rest, ""
        return rest
