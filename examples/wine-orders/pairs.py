"""Prints training examples: noisy lines with the wine they mean, `{"query", "item", "label", "slice"}` a line.

    python pairs.py --seed 11 --per-class 300

`train.NAME.data.extra` of app.yaml names it. The lines come from the generator of the evaluation sets (`noise.py`) and
are as made up as those, but of the wines of the `dev` split only: no wine of the `test` split is ever shown, so the
test asks for wines that training has not seen. The dev set does ask for wines that training saw, in other lines (lines
that are in it are left out here): it no longer judges what was trained. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import noise

LEARNT = tuple(name for name in noise.CLASSES if name != "unknown")
"""What means nothing has no item to learn."""


def examples(seed: int, per_class: int) -> Iterator[dict[str, Any]]:
    """The same arguments always give the same lines. Vintages share their names: the first stands for all."""
    wines = noise.load_wines()
    names = {wine.id: (wine.ko, wine.size) for wine in wines}
    dev = (noise.HERE / "evaluation" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    seen = {json.loads(line)["query"] for line in dev}
    for name in LEARNT:
        rng = Random(f"{seed} train {name}")
        for case in noise.class_lines(name, wines, "dev", rng, per_class):
            if case["query"] in seen:
                continue
            seen.add(case["query"])
            firsts = {names[item]: item for item in reversed(case["accept"])}
            for item in sorted(firsts.values()):
                yield {"query": case["query"], "item": item, "label": 1, "slice": name}


def main() -> None:
    parser = argparse.ArgumentParser(description="Print examples to train on, one JSON object a line.")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--per-class", type=int, default=300, help="lines of each noise class")
    arguments = parser.parse_args()
    for example in examples(arguments.seed, arguments.per_class):
        sys.stdout.buffer.write((json.dumps(example, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
