"""Every process says the same: replicas of one release must not disagree about a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASK = """
import json
from pathlib import Path
from serving.components.rules import read_aliases
from serving.retrieve.rules import RulesSource
from serving.schema import Item, Query

app = Path("examples/wine-orders")
raw = [json.loads(line) for line in (app / "items.jsonl").read_text(encoding="utf-8").splitlines()]
items = [Item(r["id"], r["fields"], r["attributes"]) for r in raw]
source = RulesSource(items, {"name_ko": 1.0, "name_en": 1.0}, read_aliases(app / "aliases.yaml"), {})
lines = (app / "evaluation" / "dev.jsonl").read_text(encoding="utf-8").splitlines()[::7]
for line in lines:
    [hits] = source.search([Query(json.loads(line)["query"])], [None], 10)
    print(hits.rows.tolist(), hits.scores.tolist())
"""


def ask(hash_seed: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_answers_do_not_depend_on_the_process() -> None:
    first, second = ask("0"), ask("1")
    assert len(first.splitlines()) > 50
    assert first == second
