"""Prints the evaluation cases that the package index itself gives, as JSON lines `{"query", "accept", "slice"}`.

`evaluation:` of app.yaml names it; `palate evaluate packages` runs it as a script.

    evaluation.py korean|english [--split test|train|all] [--cache DIR] [--lists DIR]

korean: the Korean short description -> its package. english: the opening of the long description without the words of
the package's name -> its package. Both are asked for the packages that have a Korean translation; the split is `test`
where the SHA-1 of the name ends in the hex digit 0 (one in sixteen), else `train`. Packages with one and the same query
text cannot be told apart by it, so each of them is accepted.

The English query is drawn from text that is searched as well: it measures known-item search, not understanding. The
hand-written `evaluation/questions.jsonl` measures that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from catalogue import NO_INDEX, NoIndex, add_arguments, default_cache, lists_from, read_items, say

LEAST_WORDS = 6
MOST_WORDS = 30
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
HANGUL = re.compile(r"[가-힣]")


def in_split(name: str, split: str) -> bool:
    test = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest().endswith("0")
    return split == "all" or test == (split == "test")


def name_words(name: str) -> set[str]:
    """The name and its parts, also without `lib` before and numbers after them: `libfoo2-dev` gives foo and libfoo."""
    parts = {p for p in re.split(r"[^a-z0-9]+", name.lower()) if p}
    parts |= {p.removeprefix("lib") for p in parts}
    parts |= {p.rstrip("0123456789") for p in parts}
    return {w for w in {name.lower()} | parts if len(w) > 1}


def english_query(name: str, long: str) -> str:
    """The first sentences of the long description, at least LEAST_WORDS and at most MOST_WORDS words of them, without
    any word that the name has. Empty where too little is left."""
    hidden = name_words(name)
    kept: list[str] = []
    for sentence in SENTENCE_END.split(" ".join(long.split())):
        for word in sentence.split():
            if not hidden & {word.lower().strip(".,;:()\"'"), *re.split(r"[^a-z0-9]+", word.lower())}:
                kept.append(word)
        if len(kept) >= LEAST_WORDS:
            break
    return " ".join(kept[:MOST_WORDS]) if len(kept) >= LEAST_WORDS else ""


def query_of(kind: str, fields: Mapping[str, Any]) -> str:
    if kind == "english":
        return english_query(fields["name"], fields["long"])
    # A few "translations" are still English: they would ask nothing of Korean.
    return fields["short_ko"] if HANGUL.search(fields["short_ko"]) else ""


def cases(kind: str, items: Iterable[Mapping[str, Any]], split: str) -> Iterator[dict[str, Any]]:
    """In the order of the items. `items` is read once."""
    asked: list[tuple[str, str]] = []
    named: dict[str, list[str]] = {}
    for item in items:
        fields = item["fields"]
        if kind == "korean" and "short_ko" not in fields:
            continue
        query = query_of(kind, fields)
        if query:
            named.setdefault(query, []).append(item["id"])
            if "short_ko" in fields and in_split(item["id"], split):
                asked.append((item["id"], query))
    for _, query in asked:
        yield {"query": query, "accept": named[query], "slice": kind}


def fingerprint(lists: Path, kind: str, split: str) -> str:
    """The same while apt's lists, this code and the question stay the same."""
    here = Path(__file__).parent
    known = hashlib.sha256(f"{lists.resolve()} {kind} {split}".encode())
    for file in (*sorted(p for p in lists.iterdir() if p.is_file()), here / "catalogue.py", here / "evaluation.py"):
        state = file.stat()
        known.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return known.hexdigest()


def kept_cases(cache: Path, lists: Path, kind: str, split: str) -> list[str]:
    """The cases as JSON lines: from `cache` where the lists are those they were made of, since reading 64,000
    descriptions takes seconds and every index build asks; else made and kept."""
    file, wanted = cache / f"cases-{kind}-{split}.jsonl", fingerprint(lists, kind, split)
    try:
        known, *lines, _ = file.read_text(encoding="utf-8").split("\n")  # U+2028 ends no line here
        if known == wanted:
            return lines
    except (OSError, ValueError):
        pass  # not kept yet, or not readable
    lines = [json.dumps(case, ensure_ascii=False) for case in cases(kind, read_items(lists), split)]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_text("".join(f"{line}\n" for line in (wanted, *lines)), encoding="utf-8")
        aside.replace(file)
    except OSError as error:
        say(f"warning: the cases are not kept ({error.strerror}): the next run makes them again")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the evaluation cases of the package index as JSON lines.")
    parser.add_argument("kind", choices=["korean", "english"])
    parser.add_argument("--split", choices=["test", "train", "all"], default="test")
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        lists = lists_from(arguments)
        lines = kept_cases(arguments.cache or default_cache(), lists, arguments.kind, arguments.split)
    except NoIndex as error:
        say(f"packages: {error}")
        return NO_INDEX
    sys.stdout.writelines(f"{line}\n" for line in lines)
    say(f"packages: {len(lines):,} {arguments.kind} cases of the {arguments.split} split")
    return 0


if __name__ == "__main__":
    sys.exit(main())
