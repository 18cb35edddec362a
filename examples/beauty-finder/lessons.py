"""What the tiny model learns of beauty-finder: to find who, when and why in a review, as the rules do.

    lessons.py [--count N] [--seed N] [--held-out]

The reviews are made up, and the prompt is the one that `beauty.py extract` sends. `palate models build tiny` runs it
(tiny.yaml): the model can be no better than the lexicon that it learns from.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib

import made_up
from forms import KEYWORDS, rules_of

from training.extract.rules import KeywordRules

HELD_OUT = 10
"""One review of so many is for tests."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="lessons.py", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    rules, made = rules_of(KEYWORDS), 0
    assert isinstance(rules, KeywordRules)
    for text in made_up.review_texts(options.seed):
        if (zlib.crc32(text.encode()) % HELD_OUT == 0) != options.held_out:
            continue
        answer = json.dumps(rules.values(text), ensure_ascii=False)
        line = {
            "messages": [
                {"role": "system", "content": KEYWORDS.prompt},
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer},
            ],
            "slice": "keywords",
            "schema": KEYWORDS.schema(),
        }
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        made += 1
        if made == options.count:
            return


if __name__ == "__main__":
    main()
