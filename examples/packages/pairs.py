"""Prints training examples: what a package is called for, and the package, `{"query", "item", "label", "weight",
"slice"}` a line.

`train.NAME.data.extra` of app.yaml names it; `palate train packages` runs it as a script.

    pairs.py [--english N] [--cache DIR] [--lists DIR]

korean: the Korean short description, as Debian's translators wrote it, of every package that has one. sentence: the
first SENTENCES of its Korean long description. english: the opening of the long description without the words of the
package's name, of N packages, so that what the encoder knows of English is not lost to Korean. Packages of the test
split (the SHA-1 of the name ends in the hex digit 0, see `evaluation.py`) are never in it, nor is any text that a test
case asks: twins share descriptions.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from catalogue import add_arguments, lists_from, print_lines, read_items
from evaluation import HANGUL, in_split, query_of

ENGLISH = 1000
ENGLISH_WEIGHT = 0.5
SENTENCES = 6
SENTENCE_WEIGHT = 0.4
"""A sentence in the middle of a description says less of what the package is for."""
LEAST_LETTERS = 6
"""Of Hangul: what has fewer is a list of names."""
SENTENCE_END = re.compile(r"\n+|(?<=[.!?])\s+")


def examples(items: Iterable[Mapping[str, Any]], english: int) -> Iterator[dict[str, Any]]:
    """In the order of the items, Korean first; `items` is read once. The same items give the same examples."""
    korean: list[tuple[str, str, list[str]]] = []
    plain: list[tuple[str, str]] = []
    asked: set[str] = set()
    for item in items:
        name, fields = item["id"], item["fields"]
        test = in_split(name, "test")
        title = query_of("korean", fields) if "short_ko" in fields else ""
        opening = query_of("english", fields)
        if test:
            asked |= {title, opening}
            continue
        if title:
            korean.append((name, title, sentences(fields.get("long_ko", ""))))
        if opening:
            plain.append((name, opening))
    # By hash: a package that comes or goes changes one example, not all.
    kept = set(sorted((name for name, _ in plain), key=_hash)[:english])
    for name, title, told in korean:
        if title not in asked:
            yield {"query": title, "item": name, "label": 1, "slice": "korean"}
        for sentence in told:
            if sentence not in asked:
                yield {"query": sentence, "item": name, "label": 1, "weight": SENTENCE_WEIGHT, "slice": "sentence"}
    for name, query in plain:
        if name in kept and query not in asked:
            yield {"query": query, "item": name, "label": 1, "weight": ENGLISH_WEIGHT, "slice": "english"}


def sentences(text: str) -> list[str]:
    """The first SENTENCES that have LEAST_LETTERS of Hangul, each once."""
    parts = (part.strip(" *-") for part in SENTENCE_END.split(text))
    return list(dict.fromkeys(part for part in parts if len(HANGUL.findall(part)) >= LEAST_LETTERS))[:SENTENCES]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Print examples to train on, one JSON object a line.")
    parser.add_argument("--english", type=int, default=ENGLISH, help="packages asked for in English")
    add_arguments(parser)
    arguments = parser.parse_args()
    return print_lines(lambda: examples(read_items(lists_from(arguments)), arguments.english), "examples")


if __name__ == "__main__":
    sys.exit(main())
