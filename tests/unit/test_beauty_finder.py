"""The beauty-finder example on a tiny made-up set: the files' format, the time split, what is printed for Palate."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.schema import load_app_spec
from serving.store.seed import read_items
from tests.example_modules import example_modules
from training.cases import load_cases
from training.dataset.example import parse_example
from training.extract.job import run_job
from training.trainers import checked_options, find_trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "beauty-finder"
MODULES = ("reviews", "made_up", "forms", "steps", "beauty")
ITEMS, REVIEWS = 60, 600


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    with example_modules(EXAMPLE.name, *MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def data(example: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data folder, written and extracted by rules."""
    folder = example.steps.Data(tmp_path_factory.mktemp("beauty"))
    example.made_up.write(folder.raw, ITEMS, REVIEWS, 7, lambda *_: None)
    example.beauty.prepare(folder)
    return folder


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- The format

# One line of each real file, in shape: keys, their order and types. The values are invented.
REAL_REVIEW = {"rating": 5.0, "title": "Nice", "text": "It works.<br />Really.", "images": [], "asin": "B0XXXXXXXX",
               "parent_asin": "B0YYYYYYYY", "user_id": "AEXAMPLEEXAMPLEEXAMPLEEXAMPL", "timestamp": 1588687728923,
               "helpful_vote": 0, "verified_purchase": True}  # fmt: skip
REAL_PRODUCT = {"main_category": "All Beauty", "title": "A comb", "average_rating": 4.8, "rating_number": 10,
                "features": [], "description": [], "price": None, "images": [], "videos": [], "store": "Combs",
                "categories": [], "details": {"UPC": "1"}, "parent_asin": "B0YYYYYYYY",
                "bought_together": None}  # fmt: skip


def test_made_up_files_have_the_schema_of_the_real_ones(example: SimpleNamespace, data: Any) -> None:
    schema, keys = example.reviews.schema_of, example.reviews
    assert tuple(REAL_REVIEW) == keys.REVIEW_KEYS
    assert tuple(REAL_PRODUCT) == keys.PRODUCT_KEYS
    reviews, products = objects(data.raw / keys.REVIEWS), objects(data.raw / keys.PRODUCTS)
    assert (len(products), len(reviews)) == (ITEMS, REVIEWS)
    assert {tuple(schema(line).items()) for line in reviews} == {tuple(schema(REAL_REVIEW).items())}
    wanted = schema(REAL_PRODUCT)
    for line in products:
        assert {**schema(line), "price": "NoneType"} == wanted
    assert {type(line["price"]) for line in products} == {float, type(None)}
    assert {line["parent_asin"] for line in reviews} == {line["parent_asin"] for line in products}
    counted = [sum(line["parent_asin"] == p["parent_asin"] for line in reviews) for p in products]
    assert counted == [product["rating_number"] for product in products]


def test_made_up_files_say_so_and_look_lived_in(example: SimpleNamespace, data: Any) -> None:
    assert "made_up" in json.loads((data.raw / example.made_up.NOTE).read_text())
    reviews, products = objects(data.raw / "All_Beauty.jsonl"), objects(data.raw / "meta_All_Beauty.jsonl")
    assert all(p["details"]["Manufacturer"] == "made up" and p["parent_asin"].startswith("MU") for p in products)
    times = [line["timestamp"] for line in reviews]
    assert times != sorted(times)
    assert max(times) - min(times) > 5 * 365 * example.made_up.DAY_MS
    users = [line["user_id"] for line in reviews]
    assert len(set(users)) < len(users)
    assert max(p["rating_number"] for p in products) > 2.5 * REVIEWS / ITEMS


def test_the_same_seed_gives_the_same_bytes(example: SimpleNamespace, data: Any, tmp_path: Path) -> None:
    for seed in (7, 8):
        example.made_up.write(tmp_path / str(seed), ITEMS, REVIEWS, seed, lambda *_: None)
    for name in ("All_Beauty.jsonl", "meta_All_Beauty.jsonl"):
        assert (tmp_path / "7" / name).read_bytes() == (data.raw / name).read_bytes()
        assert (tmp_path / "8" / name).read_bytes() != (data.raw / name).read_bytes()


def test_reading_names_damaged_lines_and_goes_on(example: SimpleNamespace, tmp_path: Path) -> None:
    lines = [json.dumps(REAL_REVIEW), '{"rating": 5', "[]", json.dumps({**REAL_REVIEW, "timestamp": "yesterday"}),
             json.dumps({**REAL_REVIEW, "text": None}), "", json.dumps({**REAL_REVIEW, "rating": 9}),
             json.dumps({**REAL_REVIEW, "text": "last"})]  # fmt: skip
    path, damage = tmp_path / "All_Beauty.jsonl", example.reviews.Damage()
    path.write_text("\n".join(lines))
    found = list(example.reviews.read_reviews(path, damage))
    assert [(r.line, r.item, r.timestamp_ms) for r in found] == [(1, "B0YYYYYYYY", 1588687728923),
                                                                (8, "B0YYYYYYYY", 1588687728923)]  # fmt: skip
    assert sum(damage.counts.values()) == 5
    assert [name.split(":")[0] for name in damage.named] == [f"All_Beauty.jsonl, line {n}" for n in (2, 3, 4, 5, 7)]


def test_packed_files_are_read_also_where_they_are_cut_off(example: SimpleNamespace, tmp_path: Path) -> None:
    path, damage = tmp_path / "meta_All_Beauty.jsonl.gz", example.reviews.Damage()
    base = {**REAL_PRODUCT, "price": "from $1,234.50"}
    many = [json.dumps({**base, "parent_asin": hashlib.sha1(b"%d" % n).hexdigest()}) for n in range(99)]
    packed = gzip.compress("\n".join([many[0], *many]).encode())
    path.write_bytes(packed)
    found = list(example.reviews.read_products(path, damage))
    assert (len(found), found[0].price, damage.counts.total()) == (99, 1234.5, 1), "one comes twice"
    path.write_bytes(packed[: len(packed) // 2])
    part = list(example.reviews.read_products(path, damage))
    assert part == found[: len(part)]
    assert "cut off" in str(damage)


# ---- The split


def test_the_split_is_by_time_and_keeps_one_moment_together(example: SimpleNamespace, data: Any) -> None:
    split = example.steps.find_split(data)
    times: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for line in objects(data.raw / "All_Beauty.jsonl"):
        times[split.part(line["timestamp"])].append(line["timestamp"])
    assert [len(part) for part in times.values()] == [480, 60, 60]
    assert max(times["train"]) < min(times["valid"])
    assert max(times["valid"]) < min(times["test"])
    assert example.steps.find_split(data) == split, "kept"


def test_nothing_after_the_split_is_learned_or_searched(example: SimpleNamespace, data: Any, tmp_path: Path) -> None:
    """Other reviews after the split change no item and no pair."""
    split, other = example.steps.find_split(data), example.steps.Data(tmp_path)
    example.made_up.write(other.raw, ITEMS, REVIEWS, 7, lambda *_: None)
    lines = objects(data.raw / "All_Beauty.jsonl")
    with (other.raw / "All_Beauty.jsonl").open("w") as file:
        for line in lines:
            late = split.part(line["timestamp"]) != "train"
            file.write(json.dumps({**line, "text": "my husband has flyaways at night"} if late else line) + "\n")
    example.beauty.prepare(other)

    def said(of: Any) -> list[Any]:
        return [
            list(example.steps.catalogue(of, lambda _: lambda _: None)),
            list(example.steps.pairs(of, "both", None)),
        ]

    assert said(other) == said(data)
    assert list(example.steps.cases(other, "valid", "both", None)) != list(
        example.steps.cases(data, "valid", "both", None)
    )


def test_no_case_is_a_training_pair(example: SimpleNamespace, data: Any) -> None:
    split, lines = example.steps.find_split(data), objects(data.raw / "All_Beauty.jsonl")
    last = split.valid_ms / 1000
    pairs = list(example.steps.pairs(data, "both", None))
    assert pairs
    assert all(pair["at_s"] < last for pair in pairs)
    for part in ("valid", "test"):
        there = {" ".join(line["text"].split()) for line in lines if split.part(line["timestamp"]) == part}
        found = list(example.steps.cases(data, part, "review_text", None))
        assert found
        assert {case["query"] for case in found} <= there
        trained = {pair["item"] for pair in pairs}
        assert all(case["slice"] == "seen items" for case in found if set(case["accept"]) & trained)


# ---- What is printed for Palate


def test_item_texts_have_their_sections_in_order(example: SimpleNamespace, data: Any) -> None:
    text = example.steps.item_text("A", "b, c", "D.", "e, f")
    assert text == "[Title] A [Review Keywords] b, c [Description Summary] D. [Features] e, f"
    assert example.steps.item_text("A", "", "", "e") == "[Title] A [Features] e"
    for item in example.steps.catalogue(data, lambda _: lambda _: None):
        fields = item["fields"]
        parts = [fields[name] for name in ("title", "keywords", "summary", "features")]
        assert fields["text"] == example.steps.item_text(*parts)
        assert fields["text"].startswith("[Title] ")
    assert example.forms.first_sentences("One two. " + "w " * 39 + "end. Three.") == "One two."


def test_palate_reads_what_the_scripts_print(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_BEAUTY_DATA", str(data.folder))
    spec = load_app_spec(EXAMPLE)
    assert len(list(read_items(spec, EXAMPLE))) == ITEMS
    cases = load_cases(spec.evaluation["valid"].source, EXAMPLE)
    assert {case.slice for case in cases} <= {"seen items", "new items"}
    assert spec.evaluation["valid"].k == 100
    for name, train in spec.train.items():
        checked_options(name, train, find_trainer(train.trainer))
    script, *arguments = str(spec.train["retriever"].data.extra).split()
    command = [sys.executable, script, *arguments, "--limit", "5"]
    printed = subprocess.run(command, cwd=EXAMPLE, capture_output=True, check=True).stdout.splitlines()
    assert 5 <= len([parse_example(line, "pairs") for line in printed]) <= 10


def test_a_limit_takes_the_same_reviews_again(example: SimpleNamespace, data: Any) -> None:
    every = list(example.steps.pairs(data, "review_text", None))
    some = list(example.steps.pairs(data, "review_text", 20))
    assert len(some) == 20
    assert [pair for pair in every if pair in some] == some


def test_keywords_of_other_reviews_are_refused(example: SimpleNamespace, data: Any, tmp_path: Path) -> None:
    other = example.steps.Data(tmp_path)
    example.made_up.write(other.raw, ITEMS, REVIEWS, 8, lambda *_: None)
    other.keywords.write_bytes(data.keywords.read_bytes())
    with pytest.raises(example.reviews.NoData, match="extract"):
        list(example.steps.with_keywords(other))
    short = example.beauty.inputs_of(data, example.forms.KEYWORDS)
    run_job((text for text, _ in zip(short, range(10), strict=False)), tmp_path / "short", example.beauty.rules_of(
        example.forms.KEYWORDS))  # fmt: skip
    (tmp_path / "short").replace(other.keywords)
    example.made_up.write(other.raw, ITEMS, REVIEWS, 7, lambda *_: None)
    with pytest.raises(example.reviews.NoData, match="before line 11"):
        list(example.steps.with_keywords(other))


def test_files_that_are_not_made_up_are_never_written_over(example: SimpleNamespace, tmp_path: Path) -> None:
    real = example.steps.Data(tmp_path)
    real.raw.mkdir()
    (real.raw / "All_Beauty.jsonl").write_text(json.dumps(REAL_REVIEW))
    with pytest.raises(example.reviews.NoData, match="not made up"):
        example.beauty.write_made_up(real, ITEMS, REVIEWS, 0)
    with pytest.raises(example.reviews.NoData, match="meta_All_Beauty"):
        example.beauty.prepare(real)
    assert (real.raw / "All_Beauty.jsonl").read_text() == json.dumps(REAL_REVIEW)
