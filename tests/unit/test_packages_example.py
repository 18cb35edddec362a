"""The packages example without apt: reading lists (made up here), making cases, and the files that ship with it."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from serving.schema import load_app_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "packages"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def catalogue() -> ModuleType:
    return load("catalogue")


@pytest.fixture(scope="module")
def evaluation(catalogue: ModuleType) -> ModuleType:
    return load("evaluation")


PACKAGES = """\
Package: zeta
Version: 1.0-1
Size: 100
Section: non-free/games
Priority: optional
Description: old zeta
Description-md5: aaa
Tag: role::program, interface::text-mode,
 game::toys

Package: alpha
Version: 2:0.9
Size: 7
Section: net
Description: alpha in line
 Its long text stands here,
 in the list itself.
"""
SECURITY = """\
Package: zeta
Version: 1.0-1+deb12u1
Size: 120
Section: games
Description: new zeta
Description-md5: bbb
"""
ENGLISH = """\
Package: zeta
Description-md5: bbb
Description-en: new zeta
 A game.
 .
 Features:
  * toys
  * more toys
"""
KOREAN = """\
Package: zeta
Description-md5: bbb
Description-ko: 새 제타
 놀이입니다.
"""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    texts = {
        "a_binary-amd64_Packages": PACKAGES,
        "b_binary-amd64_Packages": SECURITY,
        "a_i18n_Translation-en": ENGLISH,
        "a_i18n_Translation-ko": KOREAN,
        "a_InRelease": "noise",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
        check=False,
    )


def test_items_are_the_newest_versions_in_the_order_of_names(lists: Path) -> None:
    done = run("catalogue.py", "--lists", str(lists))
    assert done.returncode == 0, done.stderr
    alpha, zeta = (json.loads(line) for line in done.stdout.splitlines())
    assert alpha["fields"] == {
        "name": "alpha",
        "short": "alpha in line",
        "section": "net",
        "tags": [],
        "size": 7,
        "long": "Its long text stands here, in the list itself.",
    }
    assert zeta == {
        "id": "zeta",
        "fields": {
            "name": "zeta",
            "short": "new zeta",
            "long": "A game.\n\nFeatures:\n* toys\n* more toys",
            "section": "games",
            "tags": [],
            "size": 120,
            "short_ko": "새 제타",
            "long_ko": "놀이입니다.",
        },
        "attributes": {"section": "games", "size": 120, "priority": "optional"},
    }


def test_tags_over_several_lines_and_areas_of_sections_are_read(catalogue: ModuleType) -> None:
    zeta = next(catalogue.stanzas(PACKAGES.splitlines()))
    package = catalogue.package_of("zeta", "1", zeta)
    assert package.tags == ("role::program", "interface::text-mode", "game::toys")
    assert package.section == "games"


def test_stanzas_survive_blank_lines_noise_and_a_missing_last_line_feed(catalogue: ModuleType) -> None:
    text = "\n\n stray continuation\nA: 1\n b\n\n \nno colon here\n lost\nB:2"
    assert list(catalogue.stanzas(text.split("\n"))) == [{"a": "1\n b"}, {"b": "2"}]


def test_versions_sort_as_debian_policy_says(catalogue: ModuleType) -> None:
    ordered = [
        "1.0~rc1-1",
        "1.0~rc1-2",
        "1.0-1",
        "1.0-1+deb12u1",
        "1.0a-1",
        "1.0+git-1",
        "1.0.1-1",
        "1.2-1",
        "1.10-1",
        "1.10-1.1",
        "1:0.1",
        "1:0.1-1",
        "2:0~",
        "2:0",
    ]
    for low, high in itertools.combinations(ordered, 2):
        assert catalogue.version_key(low) < catalogue.version_key(high), (low, high)
    assert catalogue.version_key("1.0-0") == catalogue.version_key("1.00-0")


def test_without_apt_it_says_so_and_exits_3(tmp_path: Path) -> None:
    done = run("catalogue.py", "--cache", str(tmp_path), PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert "no apt-get on this machine" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("catalogue.py", "--cache", str(tmp_path / "file" / "cache"))
    assert done.returncode == 3
    assert "--cache" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_cases_are_kept_until_the_lists_change(lists: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    asked = ("evaluation.py", "korean", "--split", "all", "--lists", str(lists), "--cache", str(cache))
    first = run(*asked)
    assert first.returncode == 0, first.stderr
    assert [json.loads(line)["query"] for line in first.stdout.splitlines()] == ["새 제타"]
    again = run(*asked)
    assert again.stdout == first.stdout
    assert "with a Korean translation" in first.stderr
    assert "with a Korean translation" not in again.stderr  # the lists were not read
    (lists / "a_i18n_Translation-ko").write_text(KOREAN.replace("새 제타", "더 새 제타"), encoding="utf-8")
    assert [json.loads(line)["query"] for line in run(*asked).stdout.splitlines()] == ["더 새 제타"]
    for kept in cache.iterdir():
        kept.write_bytes(b"\xff")
    assert [json.loads(line)["query"] for line in run(*asked).stdout.splitlines()] == ["더 새 제타"]
    nowhere = run(*asked[:-1], str(lists / "a_InRelease" / "cache"))
    assert [json.loads(line)["query"] for line in nowhere.stdout.splitlines()] == ["더 새 제타"]
    assert "are not kept" in nowhere.stderr


@pytest.mark.parametrize("script", [("catalogue.py",), ("evaluation.py", "korean")])
def test_a_folder_without_lists_is_named(tmp_path: Path, script: tuple[str, ...]) -> None:
    done = run(*script, "--lists", str(tmp_path))
    assert done.returncode == 3
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "long", "query"),
    [
        ("frob", "Frob is a tool. It turns all the knobs of a radio.", "is a tool. It turns all the knobs of a radio."),
        (
            "libfoo2-dev",
            "Header files of foo, to build programs with libfoo2.",
            "Header files of to build programs with",
        ),
        ("python3-bar", "Too short.", ""),
        ("x", "one two three four five six. seven", "one two three four five six."),
    ],
)
def test_the_english_query_hides_the_name(evaluation: ModuleType, name: str, long: str, query: str) -> None:
    assert evaluation.english_query(name, long) == query


def made_up_items() -> list[dict[str, Any]]:
    """Sixty items; `twin…` share their texts."""
    return [
        {
            "id": f"p{n}",
            "fields": {
                "name": f"p{n}",
                "long": f"One two three four five six number{n // 2}.",
                **({"short_ko": f"묶음 {n // 2}" if n else "English"} if n < 50 else {}),
            },
        }
        for n in range(60)
    ]


@pytest.mark.parametrize("kind", ["korean", "english"])
def test_cases_split_by_name_and_accept_what_the_query_cannot_tell_apart(evaluation: ModuleType, kind: str) -> None:
    by_split = {s: list(evaluation.cases(kind, made_up_items(), s)) for s in ("test", "train", "all")}
    assert len(by_split["test"]) + len(by_split["train"]) == len(by_split["all"])
    asked = [i["id"] for i in made_up_items()[:50] if kind == "english" or i["id"] != "p0"]
    expected = [n for n in asked if hashlib.sha1(n.encode()).hexdigest()[-1] == "0"]
    assert expected
    assert len(by_split["test"]) == len(expected)
    assert all(name in case["accept"] for name, case in zip(expected, by_split["test"], strict=True))
    assert {case["slice"] for case in by_split["all"]} == {kind}
    assert ["p2", "p3"] in [case["accept"] for case in by_split["all"]]


def test_the_questions_are_enough_distinct_and_answerable() -> None:
    lines = (EXAMPLE / "evaluation" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    assert len({q["query"] for q in questions}) == len(questions)
    per_slice = {s: sum(q["slice"] == s for q in questions) for s in ("question_en", "question_ko")}
    assert per_slice["question_en"] >= 40
    assert per_slice["question_ko"] >= 30
    assert sum(per_slice.values()) == len(questions)
    for question in questions:
        assert question["accept"], question["query"]
        assert question["accept"] == sorted(set(question["accept"])), question["query"]


def test_the_spec_loads_and_never_searches_the_korean_translations() -> None:
    spec = load_app_spec(EXAMPLE)
    assert spec.items.text == ("name", "short", "long")
    assert set(spec.evaluation) == {"korean", "english", "questions"}
    for evaluation_set in spec.evaluation.values():
        assert (EXAMPLE / evaluation_set.source.split()[0]).is_file()
