"""What every measured system is given: the same items, the same texts to embed, the same queries in the same order."""

from __future__ import annotations

import json
from pathlib import Path

from serving.components.text import item_text
from serving.schema import Item

ROOT = Path(__file__).resolve().parent.parent
ITEMS = ROOT / "examples" / "wine-orders" / "items.jsonl"
DEFAULT_QUERIES = ROOT / "examples" / "wine-orders" / "evaluation" / "dev.jsonl"
FIELDS = ("name_ko", "name_en")
TOP_K = 10
MAX_TOKENS = 96
QUERY_LIMIT = 600


def load_items(file: Path = ITEMS) -> list[Item]:
    with file.open(encoding="utf-8") as lines:
        return [Item(**json.loads(line)) for line in lines]


def texts_of(items: list[Item]) -> list[str]:
    """What is embedded of each item, as Palate's index build does it."""
    return [item_text(item, FIELDS) for item in items]


def load_queries(file: Path) -> list[str]:
    """The first QUERY_LIMIT distinct one-line queries of an evaluation set."""
    queries: dict[str, None] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            query = json.loads(line)["query"]
            if "\n" not in query:
                queries[query] = None
            if len(queries) == QUERY_LIMIT:
                break
    return list(queries)


def write_bodies(queries: list[str], file: Path) -> None:
    """One request body a line: what the load generator posts, in turn."""
    file.write_text(
        "".join(json.dumps({"query": q, "top_k": TOP_K}, ensure_ascii=False) + "\n" for q in queries), encoding="utf-8"
    )
