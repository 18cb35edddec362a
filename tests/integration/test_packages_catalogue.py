"""The packages example with the real apt: over a made-up repository on disk, and over this machine's own sources."""

from __future__ import annotations

import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.example_modules import example_modules

EXAMPLE = Path(__file__).parents[2] / "examples" / "packages"
NO_INDEX = 3

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")

MADE_UP = "Package: made-up\nVersion: 1\nArchitecture: all\nSize: 5\nSection: misc\nDescription: made up\n for a test\n"


def run(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=280,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A flat repository with one made-up package."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "Packages").write_text(MADE_UP, encoding="utf-8")
    return folder


@pytest.fixture
def apt_config(tmp_path: Path, repository: Path) -> str:
    """An apt configuration whose only source is that repository."""
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb [trusted=yes] copy:{repository} ./\n", encoding="utf-8")
    config = tmp_path / "apt.conf"
    config.write_text(f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n', encoding="utf-8")
    return str(config)


def ids(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]


def test_apt_fetches_once_a_day_and_an_old_cache_serves_when_it_cannot(
    tmp_path: Path, repository: Path, apt_config: str
) -> None:
    arguments = ("catalogue.py", "--cache", str(tmp_path / "cache"))
    first = run(*arguments, APT_CONFIG=apt_config)
    assert ids(first) == ["made-up"]
    assert "updating" in first.stderr

    shutil.rmtree(repository)
    fresh = run(*arguments, APT_CONFIG=apt_config)
    assert ids(fresh) == ["made-up"]
    assert "updating" not in fresh.stderr

    for at in (1.0, 4e9):  # an old cache, and one from a clock that was set back since
        os.utime(tmp_path / "cache" / "updated", (at, at))
        old = run(*arguments, APT_CONFIG=apt_config)
        assert ids(old) == ["made-up"]
        assert "warning: apt could not update every list" in old.stderr


def test_lists_that_apt_keeps_compressed_are_read(tmp_path: Path) -> None:
    (tmp_path / "x_Packages.xz").write_bytes(lzma.compress(MADE_UP.encode()))
    assert ids(run("catalogue.py", "--lists", str(tmp_path))) == ["made-up"]


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "x_Packages.xz").write_bytes(lzma.compress(MADE_UP.encode())[:40])
    done = run("catalogue.py", "--lists", str(tmp_path))
    assert done.returncode == NO_INDEX
    assert "x_Packages.xz" in done.stderr


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the machine's real package index."""
    cache = tmp_path_factory.mktemp("packages")
    done = run("catalogue.py", "--cache", str(cache))
    if done.returncode == NO_INDEX or "warning" in done.stderr:
        pytest.skip(f"the package mirror cannot be reached: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    (cache / "items.jsonl").write_text(done.stdout, encoding="utf-8")
    return cache


def test_the_real_index_is_read_in_order(machine: Path) -> None:
    items = [json.loads(line) for line in (machine / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [item["id"] for item in items]
    assert len(names) > 20_000
    assert names == sorted(set(names))
    described = [i for i in items if i["fields"]["short"] and i["fields"]["long"]]
    assert len(described) > 0.95 * len(items)
    assert not any(re.search(r"(?m)^( \.| \w)", i["fields"]["long"]) for i in items[:5000])
    assert all(i["attributes"]["size"] > 0 for i in described)
    assert sum("short_ko" in i["fields"] for i in items) > 1000


def test_every_accepted_answer_is_a_real_package(machine: Path) -> None:
    if "bookworm" not in Path("/etc/os-release").read_text(encoding="utf-8"):
        pytest.skip("the questions were checked against Debian 12")
    lines = (machine / "items.jsonl").read_text(encoding="utf-8").splitlines()
    known = {json.loads(line)["id"] for line in lines}
    questions = (EXAMPLE / "evaluation" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    unknown = {name for line in questions for name in json.loads(line)["accept"]} - known
    assert not unknown


@pytest.mark.parametrize("kind", ["korean", "english"])
def test_the_real_index_gives_a_test_split(machine: Path, kind: str) -> None:
    done = run("evaluation.py", kind, "--cache", str(machine))
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) > 50
    assert all(set(case) == {"query", "accept", "slice"} and case["query"] and case["accept"] for case in cases)
    if kind == "korean":
        assert all(re.search("[가-힣]", case["query"]) for case in cases)
    else:
        assert not [case for case in cases if set(case["query"].lower().split()) & set(case["accept"])]


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_versions_compare_as_dpkg_does(machine: Path) -> None:
    with example_modules(EXAMPLE.name, "catalogue") as found:
        catalogue = found.catalogue
        packages = catalogue.newest_packages(machine / "lists")
        versions = [packages[name].version for name in random.Random(0).sample(sorted(packages), 200)]
        for low, high in zip(versions[::2], versions[1::2], strict=True):
            less = subprocess.run(["dpkg", "--compare-versions", low, "lt", high], check=False).returncode == 0
            assert (catalogue.version_key(low) < catalogue.version_key(high)) == less, (low, high)
