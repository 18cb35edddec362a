"""What is extracted from reviews and product pages: the forms, and what fills them without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from training.extract.ports import Extraction, Extractor, Form
from training.extract.rules import KeywordRules

FIELDS = ("who", "when", "why")
SUMMARY_WORDS = 40
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
Keywords = Annotated[list[str], Field(max_length=5)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReviewKeywords(_Answer):
    who: Keywords
    when: Keywords
    why: Keywords


class PageSummary(_Answer):
    summary: str


KEYWORDS = Form(
    "keywords",
    """You read one customer review of a beauty product and list keywords, in English, of one to three words each,
lower case, at most five per field:
who: the people it suits, such as a skin or hair type, an age, a job, a person it was bought for
when: the time, season, place or occasion of its use
why: the problem it solves or the result it is wanted for
Use only what the review says. A field that it says nothing about is an empty list. Answer with JSON:
{"who": [...], "when": [...], "why": [...]}""",
    ReviewKeywords,
)
SUMMARY = Form(
    "summary",
    """You read the description of one beauty product. Say in one or two plain sentences, forty words at most, what it
is, for whom and what it does. Leave out prices, slogans and storage advice. Answer with JSON: {"summary": "..."}""",
    PageSummary,
)


class FirstSentences:
    """A summary without a model: the first sentences, as many as fit into SUMMARY_WORDS words, at least the first ones'
    words."""

    form = SUMMARY
    at_once = 64
    identity: Mapping[str, Any] = {"engine": "first sentences", "words": SUMMARY_WORDS}

    async def extract(self, text: str) -> Extraction:
        return Extraction({"summary": first_sentences(text)}, "rules")


def first_sentences(text: str) -> str:
    kept: list[str] = []
    for sentence in SENTENCE_END.split(" ".join(text.split())):
        words = sentence.split()
        if kept and len(kept) + len(words) > SUMMARY_WORDS:
            break
        kept += words
    return " ".join(kept[:SUMMARY_WORDS])


def rules_of(form: Form) -> Extractor:
    """What fills a form where there is no model."""
    if form is SUMMARY:
        return FirstSentences()
    lexicon = yaml.safe_load((Path(__file__).parent / "keywords.yaml").read_text(encoding="utf-8"))
    return KeywordRules(form, lexicon)
