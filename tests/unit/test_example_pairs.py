"""What the examples train on: never an item, nor a text, of their test sets."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from serving.schema import load_app_spec
from tests.example_modules import example_modules
from training.contrastive.options import ContrastiveOptions
from training.dataset.example import parse_example

EXAMPLES = Path(__file__).parents[2] / "examples"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_wine_pairs_are_of_wines_that_no_test_line_means() -> None:
    command = [sys.executable, "pairs.py", "--per-class", "40"]
    first, again = (
        subprocess.run(command, cwd=EXAMPLES / "wine-orders", capture_output=True, check=True).stdout for _ in range(2)
    )
    assert first == again
    examples = [parse_example(line, "pairs.py") for line in first.splitlines()]
    assert len(examples) > 450
    assert {example.slice for example in examples} >= {"typo_jamo", "exact_en", "mixed", "abbreviation"}
    evaluation = EXAMPLES / "wine-orders" / "evaluation"
    items = {item["id"]: item["fields"]["name_ko"] for item in read_lines(EXAMPLES / "wine-orders" / "items.jsonl")}
    test = read_lines(evaluation / "test.jsonl")
    asked = {items[item] for case in test for item in case["accept"]}
    assert asked.isdisjoint(items[example.item] for example in examples)
    evaluated = {case["query"] for case in [*test, *read_lines(evaluation / "dev.jsonl")]}
    assert evaluated.isdisjoint(example.query for example in examples)


def made_up_packages() -> list[dict[str, Any]]:
    """Sixty packages of which two at a time share their Korean description."""
    items = []
    for n in range(60):
        name = f"p{n}"
        long = f"Turns knob number{n} of the radio a little further to the left."
        told = f"손잡이 {n // 2}\n\n* 라디오 손잡이 {n}번을 왼쪽으로 돌립니다. 왼쪽으로 조금 더.\n- mp3, ogg: 예"
        fields = {"name": name, "short": f"knob {n}", "long": long} | (
            {"short_ko": f"손잡이 {n // 2}", "long_ko": told} if n < 50 else {}
        )
        items.append({"id": name, "fields": fields})
    return items


def in_test(name: str) -> bool:
    return hashlib.sha1(name.encode()).hexdigest().endswith("0")


def test_package_pairs_hold_no_test_package_and_no_text_of_one() -> None:
    with example_modules("packages", "pairs") as found:
        pairs = found.pairs
        examples = list(pairs.examples(made_up_packages(), 10))
        assert examples == list(pairs.examples(made_up_packages(), 10))
    test = {item["fields"].get("short_ko") for item in made_up_packages() if in_test(item["id"])}
    assert {name for name in (f"p{n}" for n in range(50)) if in_test(name)}
    korean = [example for example in examples if example["slice"] == "korean"]
    english = [example for example in examples if example["slice"] == "english"]
    assert not any(in_test(example["item"]) for example in examples)
    assert test.isdisjoint(example["query"] for example in examples)
    for item in {example["item"] for example in korean}:
        told = [example["query"] for example in examples if (example["item"], example["slice"]) == (item, "sentence")]
        assert told == [f"라디오 손잡이 {item[1:]}번을 왼쪽으로 돌립니다.", "왼쪽으로 조금 더."], (
            "no title, no list of names"
        )
    assert len(korean) == sum(
        not in_test(item["id"]) and item["fields"].get("short_ko") not in {None, *test} for item in made_up_packages()
    )
    assert len(english) == 10
    for example in examples:
        parse_example(json.dumps(example), "pairs.py")


def test_the_trainings_of_the_examples_are_valid() -> None:
    for app in ("wine-orders", "packages"):
        [train] = load_app_spec(EXAMPLES / app).train.values()
        ContrastiveOptions.model_validate(train.options)
        assert (EXAMPLES / app / (train.data.extra or "").split()[0]).is_file()
        assert train.gates
        assert train.canary
