"""The documents tell the truth, and every file keeps to the project's budget and leaves this machine's names out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("README.md", "CONTRIBUTING.md")
FOLDERS = r"(?:scripts|serving|registry|training|examples|tests|bench|requirements|charts|k8s|\.ci)"

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 50, 6
OVER_BUDGET = frozenset(
    {
        # The parameters of a command are its options.
        "serving/commands/data.py::query",
        "serving/commands/data.py::feedback",
        "serving/commands/derive.py::derive_command",
        "serving/commands/lifecycle.py::up",
        "serving/commands/rollout.py::start",
        "training/cli.py::evaluate",
        "training/commands/batch.py::generate_batch",
        "training/commands/train.py::train",
        # A migration reads best as the list of tables it makes.
        "registry/database/migrations/versions/v0001_initial.py::upgrade",
    }
)
"""`file` or `file::function` that may exceed the budget, each with the reason beside it. Empty is the aim."""

# Written in two halves so that this file passes its own test.
FORBIDDEN = {
    "a package registry's host": r"py" r"pi\.org|python" r"hosted\.org|np" r"mjs\.org",
    "a path of one machine": r"(?<![\w.~-])/(?:wo" r"rk|ro" r"ot|opt/py" r"pi[\w-]*|opt/wh" r"eels)(?=/|\b(?![\w-]))",
}


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def python_files() -> list[Path]:
    return [file for file in project_files() if file.suffix == ".py"]


def text_of(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def code_in(markdown: str) -> str:
    """The fenced blocks and inline code of a document."""
    return "\n".join(re.findall(r"```[^\n]*\n(.*?)```", markdown, re.S) + re.findall(r"`([^`\n]+)`", markdown))


def broken_links(document: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def forbidden_words(text: str) -> list[str]:
    return [f"{what}: {m.group()}" for what, pattern in FORBIDDEN.items() for m in re.finditer(pattern, text)]


def over_budget(name: str, source: str) -> list[str]:
    """What in a Python file exceeds the budget. Tests may take as many fixtures as they need."""
    found = [name] if len(source.splitlines()) > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parameters = [a for a in arguments if a.arg not in ("self", "cls")]
            if lines > MAX_FUNCTION_LINES or (len(parameters) > MAX_PARAMETERS and not name.startswith("tests/")):
                found.append(f"{name}::{node.name}")
    return found


@pytest.mark.parametrize("guide", GUIDES)
def test_every_path_a_guide_names_exists(guide: str) -> None:
    code = code_in((ROOT / guide).read_text(encoding="utf-8"))
    paths = set(re.findall(rf"(?<![\w/.-])(?:\./)?({FOLDERS}/[\w./-]*\w)", code))
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("guide", GUIDES)
def test_every_palate_command_a_guide_names_exists(guide: str) -> None:
    code = code_in((ROOT / guide).read_text(encoding="utf-8"))
    unknown = []
    for command in sorted(set(re.findall(r"(?:^|[\s/])palate ([a-z][a-z-]*)", code))):
        asked = [str(Path(sys.executable).parent / "palate"), command, "--help"]
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            unknown.append(command)
    assert unknown == []


def test_links_between_documents_resolve() -> None:
    documents = [file for file in project_files() if file.suffix == ".md"]
    broken = {str(file.relative_to(ROOT)): broken_links(file) for file in documents}
    assert {name: links for name, links in broken.items() if links} == {}


def test_the_changelog_begins_with_the_current_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[?v?(\d+\.\d+\.\d+)", changelog, re.M)[:1] == [project["version"]]


def test_no_file_names_a_registry_or_this_machine() -> None:
    found = {}
    for file in project_files():
        words = forbidden_words(text_of(file) or "")
        if words:
            found[str(file.relative_to(ROOT))] = words
    assert found == {}


def test_every_file_and_function_keeps_to_the_budget() -> None:
    over = {one for file in python_files() for one in over_budget(str(file.relative_to(ROOT)), text_of(file) or "")}
    assert sorted(over - OVER_BUDGET) == []
    assert sorted(OVER_BUDGET - over) == [], "these are within the budget again: take them off the list"


def test_the_checks_find_what_they_look_for(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One two\n[x](b.md) [y](a.md#one-two) [z](#three) [w](https://example.org)\n")
    assert broken_links(tmp_path / "a.md") == ["b.md", "#three"]
    machine_path, host = "/wo" + "rk/main/x", "https://py" + "pi.org/simple"
    assert len(forbidden_words(f"cd {machine_path}; see {host}; a/wo" + "rk/x; /wo" + "rker")) == 2
    long_function = "def f():\n" + "    x = 1\n" * 50
    assert over_budget("a.py", long_function) == ["a.py::f"]
    assert over_budget("a.py", "def f(a, b, c, d, e, f, g): ...\n") == ["a.py::f"]
    assert over_budget("a.py", "def f(self, b, c, d, e, f, g): ...\n" * 401) == ["a.py"]
