"""The README is true: its commands run, in order, as a newcomer runs them, and what they answer meets the bars.

Only two things differ from a newcomer's machine: the home folder is a temporary one, and the port is a free one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.net import free_port
from serving.local.home import Home
from tests.platform import ROOT, Platform

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
UP, TEST, *REST = BLOCKS
pytestmark = pytest.mark.timeout(1000)  # the first start builds the index of 64,000 packages


class Newcomer:
    """A shell with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.platform = Platform(Home(folder / ".palate"), free_port())
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PALATE_", "RAY_"))}
        self._environment = {**kept, "HOME": str(folder), "PALATE_PORT": str(self.platform.port), "COLUMNS": "200"}

    def run(self, block: str, limit_s: float = 120) -> str:
        text = block.replace("127.0.0.1:8000", f"127.0.0.1:{self.platform.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=limit_s,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def screen() -> Iterator[tuple[Newcomer, str]]:
    """A newcomer after the first block, and what it printed."""
    folder = Path(tempfile.mkdtemp(prefix="palate-readme-"))
    newcomer = Newcomer(folder)
    try:
        yield newcomer, newcomer.run(UP, limit_s=900)
    finally:
        newcomer.run("scripts/down")
        shutil.rmtree(folder, ignore_errors=True)


def test_the_screen_has_addresses_and_a_curl_line_per_app_that_works(screen: tuple[Newcomer, str]) -> None:
    newcomer, printed = screen
    assert newcomer.platform.url in printed
    assert "MLflow UI" in printed
    assert "palate down" in printed
    lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("curl ")]
    assert len(lines) == 2
    for line, wanted in zip(lines, ["wine-orders", "packages"], strict=True):
        answer = json.loads(newcomer.run(line))
        assert answer["app"] == wanted
        assert answer["results"], line


def test_the_commands_of_the_readme_run(screen: tuple[Newcomer, str]) -> None:
    newcomer, _ = screen
    assert TEST == "scripts/test"  # this very run
    printed = [newcomer.run(block) for block in REST]
    wine, packages = (json.loads(text) for text in printed[:2])
    assert [line["quantity"] for line in wine["lines"]] == [24, 2]
    assert [line["results"][0]["fields"]["name_en"] for line in wine["lines"]] == [
        "Lake Chalice Marlborough Sauvignon Blanc",
        "Opus One",
    ]
    assert wine["lines"][1]["vintage"] == 2019
    assert "PDF" in packages["results"][0]["fields"]["short"]
    assert {r["fields"]["section"] for r in packages["results"]} <= {"utils", "text"}


def test_the_apps_meet_their_bars(screen: tuple[Newcomer, str]) -> None:
    newcomer, _ = screen
    found = {}
    for app in ("wine-orders", "packages"):
        shown = newcomer.run(f".venv/bin/palate releases {app} --json")
        [stable] = [release for release in json.loads(shown) if "stable" in release["aliases"]]
        found[app] = stable["metrics"]
    assert found["wine-orders"]["test_accuracy"] >= 0.95
    assert found["packages"]["items"] > 50_000
    report = json.loads(newcomer.run(".venv/bin/palate evaluate packages --set questions --json", limit_s=300))
    assert report["sets"]["questions"]["slices"]["question_en"]["success_at_k"] >= 0.8
