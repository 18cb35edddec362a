"""The wine-orders example: catalogue, aliases and the made-up order lines that ship with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import yaml
from rapidfuzz.distance import DamerauLevenshtein

from serving.components.catalogue import validate_attributes
from serving.schema import Item, load_app_spec
from tests.example_modules import example_modules
from training.cases import load_cases

EXAMPLE = Path(__file__).parents[2] / "examples" / "wine-orders"
SPLITS = ("dev", "test")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    return read_lines(EXAMPLE / "items.jsonl")


@pytest.fixture(scope="module")
def cases() -> dict[str, list[dict[str, Any]]]:
    return {split: read_lines(EXAMPLE / "evaluation" / f"{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def noise() -> Iterator[ModuleType]:
    with example_modules(EXAMPLE.name, "noise") as found:
        yield found.noise


class TestCatalogue:
    def test_there_are_374_wines_with_ids_of_one_form(self, items: list[dict[str, Any]]) -> None:
        assert len(items) == 374
        assert len({item["id"] for item in items}) == 374
        assert all(re.fullmatch(r"[0-9][A-Z][0-9]{5}", item["id"]) for item in items)

    def test_every_item_fits_the_app_spec(self, items: list[dict[str, Any]]) -> None:
        spec = load_app_spec(EXAMPLE)
        for item in items:
            assert set(item) == {"id", "fields", "attributes"}
            assert all(item["fields"][name].strip() for name in spec.items.text)
            validate_attributes(Item(**item), spec.items.attributes)

    def test_fields_and_attributes_tell_the_same(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            for shared in ("vintage", "grape", "region"):
                assert item["fields"].get(shared) == item["attributes"].get(shared)

    def test_names_are_in_their_scripts(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            assert re.search("[가-힣]", item["fields"]["name_ko"])
            assert not re.search("[가-힣]", item["fields"]["name_en"])

    @pytest.mark.parametrize("name", ["name_ko", "name_en"])
    def test_a_name_names_one_wine_up_to_its_vintage(self, items: list[dict[str, Any]], name: str) -> None:
        counts = Counter((item["fields"][name], item["fields"].get("vintage")) for item in items)
        assert [key for key, count in counts.items() if count > 1] == []

    def test_bottle_sizes_stand_in_the_names(self, items: list[dict[str, Any]]) -> None:
        endings = {375: " 375ml", 1500: " 1.5L"}
        for item in items:
            ending = endings.get(item["attributes"]["volume_ml"])
            for name in (item["fields"]["name_ko"], item["fields"]["name_en"]):
                assert name.endswith(ending) if ending else not name.endswith(tuple(endings.values()))

    def test_the_wines_everybody_asks_for_are_there(self, items: list[dict[str, Any]]) -> None:
        names = {item["id"]: item["fields"]["name_ko"] for item in items}
        assert names["3A24401"] == "레이크 찰리스 말보로 소비뇽 블랑"
        assert "샤또 마고" in names.values()
        assert any("찰스 하이직" in name for name in names.values())

    def test_it_is_hard_on_purpose(self, items: list[dict[str, Any]]) -> None:
        wines = {(i["fields"]["name_ko"], i["attributes"]["volume_ml"]) for i in items}
        assert len(items) - len(wines) >= 15, "wines in two vintages"
        assert sum(i["attributes"]["volume_ml"] != 750 for i in items) >= 15
        assert Counter(i["fields"]["producer"] for i in items).most_common(1)[0][1] >= 5


class TestAliases:
    def test_every_spelling_stands_for_one_word(self) -> None:
        table = yaml.safe_load((EXAMPLE / "aliases.yaml").read_text(encoding="utf-8"))
        spellings = Counter(s.lower() for word, others in table.items() for s in (word, *others))
        assert [s for s, count in spellings.items() if count > 1] == []

    def test_it_lists_no_item_and_no_producer(self, items: list[dict[str, Any]]) -> None:
        table = yaml.safe_load((EXAMPLE / "aliases.yaml").read_text(encoding="utf-8"))
        spellings = {s.lower() for word, others in table.items() for s in (word, *others)}
        for key in ("name_ko", "name_en", "producer", "producer_ko"):
            assert spellings & {item["fields"][key].lower() for item in items} == set()


class TestOrderLines:
    @pytest.mark.parametrize("split", SPLITS)
    def test_the_shipped_file_is_what_the_generator_prints(self, split: str) -> None:
        command = [sys.executable, "noise.py", "--seed", "7", "--split", split]
        printed = subprocess.run(command, cwd=EXAMPLE, capture_output=True, check=True, timeout=120).stdout
        assert printed == (EXAMPLE / "evaluation" / f"{split}.jsonl").read_bytes()

    @pytest.mark.parametrize("split", SPLITS)
    def test_every_class_has_its_share(
        self, cases: dict[str, list[dict[str, Any]]], noise: ModuleType, split: str
    ) -> None:
        counts = Counter(case["slice"] for case in cases[split])
        assert set(counts) == set(noise.CLASSES)
        assert set(counts.values()) == {noise.LINES_PER_CLASS}
        assert counts.total() >= 600

    def test_no_item_and_no_line_is_in_both_splits(self, cases: dict[str, list[dict[str, Any]]]) -> None:
        dev, test = ({i for case in cases[split] for i in case["accept"]} for split in SPLITS)
        assert min(len(dev), len(test)) > 140
        assert dev & test == set()
        assert {c["query"] for c in cases["dev"]} & {c["query"] for c in cases["test"]} == set()

    @pytest.mark.parametrize("split", SPLITS)
    def test_accepted_ids_exist_and_fit_a_named_vintage(
        self, cases: dict[str, list[dict[str, Any]]], items: list[dict[str, Any]], split: str
    ) -> None:
        vintages = {item["id"]: item["fields"].get("vintage") for item in items}
        for case in cases[split]:
            assert bool(case["accept"]) == (case["slice"] != "unknown")
            assert all(i in vintages for i in case["accept"])
            if case["vintage"]:
                assert {vintages[i] for i in case["accept"]} == {case["vintage"]}
                assert str(case["vintage"])[2:] in case["query"]
            if case["quantity"]:
                assert str(case["quantity"]) in case["query"]

    @pytest.mark.parametrize("split", SPLITS)
    def test_without_a_vintage_every_vintage_is_right(
        self, cases: dict[str, list[dict[str, Any]]], items: list[dict[str, Any]], split: str
    ) -> None:
        names = {item["id"]: item["fields"]["name_ko"] for item in items}
        for case in cases[split]:
            if case["vintage"] is None and case["accept"]:
                accepted = {names[i] for i in case["accept"]}
                assert set(case["accept"]) == {i for i, name in names.items() if name in accepted}, case["query"]

    def test_goods_that_are_not_carried_are_not_items(self, items: list[dict[str, Any]]) -> None:
        goods = (EXAMPLE / "not_carried.txt").read_text(encoding="utf-8").splitlines()
        names = {n for item in items for n in (item["fields"]["name_ko"], item["fields"]["name_en"])}
        assert len(goods) == len(set(goods)) > 120
        assert not names & set(goods)

    @pytest.mark.parametrize("split", SPLITS)
    def test_the_evaluation_of_the_app_can_be_read(self, split: str) -> None:
        spec = load_app_spec(EXAMPLE)
        assert len(load_cases(spec.evaluation[split].source, EXAMPLE)) >= 600

    def test_another_seed_gives_other_lines(self, noise: ModuleType, cases: dict[str, list[dict[str, Any]]]) -> None:
        again = list(noise.generate(8, "test", noise.load_wines(), count=5))
        assert len(again) == 5 * len(noise.CLASSES)
        shipped = {case["query"] for case in cases["test"] if case["slice"] == "typo_jamo"}
        assert not {case["query"] for case in again if case["slice"] == "typo_jamo"} <= shipped


class TestLetters:
    def test_korean_in_the_latin_layout(self, noise: ModuleType) -> None:
        assert noise.hangul.flip_layout("안녕") == "dkssud"
        assert noise.hangul.flip_layout("레이크") == "fpdlzm"
        assert noise.hangul.flip_layout("왕관") == "dhkdrhks"

    def test_latin_in_the_korean_layout(self, noise: ModuleType) -> None:
        assert noise.hangul.flip_layout("dkssud") == "안녕"
        assert noise.hangul.flip_layout("cabernet") == "ㅊ뮫굳ㅅ"

    def test_every_korean_word_of_the_catalogue_comes_back(self, noise: ModuleType) -> None:
        hangul = noise.hangul
        for word in {w for wine in noise.load_wines() for w in wine.ko if all(map(hangul.is_syllable, w))}:
            typed = hangul.flip_layout(word)
            assert typed.isascii()
            assert hangul.compose("".join(hangul.JAMO[key] for key in typed)) == word

    def test_syllables_split_and_join(self, noise: ModuleType) -> None:
        hangul = noise.hangul
        assert hangul.split_syllable("값") == ("ㄱ", "ㅏ", "ㅄ")
        assert all(hangul.join_syllable(*hangul.split_syllable(chr(c))) == chr(c) for c in range(0xAC00, 0xD7A4))

    @pytest.mark.parametrize("seed", range(50))
    def test_a_typo_is_one_slip(self, noise: ModuleType, seed: int) -> None:
        slipped = noise.hangul.typo("소비뇽", Random(seed))
        assert slipped != "소비뇽"
        assert abs(len(slipped) - 3) <= 1
        assert DamerauLevenshtein.distance("Margaux", noise.hangul.latin_typo("Margaux", Random(seed))) <= 1
