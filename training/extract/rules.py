"""The extractor without a model: phrases of a lexicon, found in the words of a text.

It is the default where no server is named, and what a text falls back to that a model cannot answer. It finds only what
its lexicon lists, knows no negation and no grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from registry.content import digest_json
from training.extract.ports import Extraction, Form

Lexicon = Mapping[str, Mapping[str, Sequence[str]]]
"""Field of the form -> keyword -> the phrases that mean it. The keyword itself is one of them."""

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


class KeywordRules:
    """Fills a form whose fields are lists of keywords: at most `most` of them, in the order in which the text names
    them. Of phrases that begin at one word the longest counts."""

    at_once = 64

    def __init__(self, form: Form, lexicon: Lexicon, most: int = 5) -> None:
        """Raises ValueError where the lexicon's fields are not the form's."""
        if set(lexicon) != set(form.answer.model_fields):
            raise ValueError(
                f"the lexicon has the fields {sorted(lexicon)}, form {form.name} has {sorted(form.answer.model_fields)}"
            )
        self._form = form
        self._fields = tuple(lexicon)
        self._most = most
        self._digest = digest_json({field: {k: list(p) for k, p in words.items()} for field, words in lexicon.items()})
        self._phrases = _by_first_word(lexicon)

    @property
    def form(self) -> Form:
        return self._form

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"engine": "rules", "lexicon": self._digest, "most": self._most}

    async def extract(self, text: str) -> Extraction:
        return Extraction(self.values(text), "rules")

    def values(self, text: str) -> Mapping[str, Any]:
        """The form, filled."""
        found: dict[str, dict[str, None]] = {field: {} for field in self._fields}
        for field, keyword in self._matches([word.replace("’", "'") for word in WORD.findall(text.lower())]):
            if len(found[field]) < self._most:
                found[field][keyword] = None
        answer = self._form.answer.model_validate({field: list(words) for field, words in found.items()})
        return answer.model_dump(mode="json")

    def _matches(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        place = 0
        while place < len(words):
            step = 1
            for phrase, field, keyword in self._phrases.get(words[place], ()):
                if list(phrase) == words[place : place + len(phrase)]:
                    yield field, keyword
                    step = len(phrase)
                    break
            place += step


def _by_first_word(lexicon: Lexicon) -> dict[str, list[tuple[tuple[str, ...], str, str]]]:
    """First word -> (phrase, field, keyword), the longest phrase first."""
    table: dict[str, list[tuple[tuple[str, ...], str, str]]] = {}
    for field, keywords in lexicon.items():
        for keyword, phrases in keywords.items():
            for text in dict.fromkeys((keyword, *phrases)):
                phrase = tuple(WORD.findall(text.lower()))
                if phrase:
                    table.setdefault(phrase[0], []).append((phrase, field, keyword))
    for entries in table.values():
        entries.sort(key=lambda entry: (-len(entry[0]), entry))
    return table
