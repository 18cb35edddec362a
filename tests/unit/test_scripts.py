"""scripts/install on a checkout in miniature: one made-up package from a local folder, no network, a real venv."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(file for file in (ROOT / "scripts").iterdir() if file.is_file())
BACKEND = """
import pathlib, shutil, time

def build_editable(folder, config_settings=None, metadata_directory=None):
    pathlib.Path("building").touch()
    while pathlib.Path("wait").exists():
        time.sleep(0.05)
    return pathlib.Path(shutil.copy("built/miniature-1.0-py3-none-any.whl", folder)).name
"""


def make_wheel(folder: Path, name: str) -> None:
    """An installable distribution of one empty module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text.encode())}\n"
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


class Checkout:
    """A folder with the real scripts, a lock of one package and a build that can be held up by a file `wait`."""

    def __init__(self, folder: Path) -> None:
        wheels = folder.parent / "wheels"
        self.folder = folder
        self.venv = folder / ".venv"
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PALATE_"))}
        self.env |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PALATE_PYTHON": sys.executable,
            "PALATE_INSTALL_GB": "0",
        }
        (folder / "requirements").mkdir(parents=True)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        make_wheel(wheels, "probe_one")
        make_wheel(wheels, "probe_two")
        make_wheel(folder / "built", "miniature")
        self.lock("probe_one==1.0")
        (folder / "backend.py").write_text(BACKEND)
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "miniature"\nversion = "1.0"\n'
        )

    def lock(self, *requirements: str) -> None:
        (self.folder / "requirements" / "cpu.lock").write_text("\n".join(requirements) + "\n")

    def start(self, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / "scripts" / "install"], cwd="/", env=self.env | env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def install(self, **env: str) -> tuple[int, str]:
        process = self.start(**env)
        out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    def has(self, module: str) -> bool:
        return any(self.venv.glob(f"lib/python*/site-packages/{module}.py"))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.name))
def test_scripts_are_bash_that_parses(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if script.suffix != ".sh":  # those are sourced
        assert os.access(script, os.X_OK)
        assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")


def test_ci_runs_checks_and_then_tests() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if "scripts/" in line]
    assert commands == ["scripts/check", "exec scripts/test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_installs_once_and_again_only_when_something_changed(checkout: Checkout) -> None:
    code, said = checkout.install()
    assert code == 0, said
    assert checkout.has("probe_one")
    assert checkout.has("miniature")
    before = {file: file.stat().st_mtime_ns for file in checkout.venv.rglob("*")}
    assert checkout.install() == (0, "")
    assert {file: file.stat().st_mtime_ns for file in checkout.venv.rglob("*")} == before

    checkout.lock("probe_one==1.0", "probe_two==1.0")
    code, said = checkout.install()
    assert code == 0, said
    assert checkout.has("probe_two")


def test_a_failed_install_says_why_and_is_not_taken_for_done(checkout: Checkout) -> None:
    checkout.lock("probe_one==1.0", "probe_three==1.0")
    for _ in range(2):
        code, said = checkout.install()
        assert code == 1
        assert "probe_three" in said
        assert "fix: " in said
    checkout.lock("probe_one==1.0")
    assert checkout.install()[0] == 0


def test_an_install_killed_half_way_is_begun_again(checkout: Checkout) -> None:
    (checkout.folder / "wait").touch()
    process = checkout.start()
    wait_for((checkout.folder / "building").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    leftover = checkout.venv / "half-unpacked"
    leftover.touch()
    (checkout.folder / "wait").unlink()
    code, said = checkout.install()
    assert code == 0, said
    assert not leftover.exists()
    assert checkout.has("miniature")


def test_two_installs_at_once_take_turns(checkout: Checkout) -> None:
    (checkout.folder / "wait").touch()
    first = checkout.start()
    wait_for((checkout.folder / "building").exists)
    second = checkout.start()
    assert second.stderr is not None
    assert "waiting for another" in second.stderr.readline()
    (checkout.folder / "wait").unlink()
    assert "installed in" in first.communicate(timeout=120)[1]
    assert second.communicate(timeout=120) == ("", "")
    assert (first.returncode, second.returncode) == (0, 0)


def test_another_python_is_refused_with_the_fix(checkout: Checkout, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.9\n")
    other.chmod(0o755)
    code, said = checkout.install(PALATE_PYTHON=str(other))
    assert code == 1
    assert "Python 3.11 is needed, found 3.9" in said
    assert not (checkout.venv / "bin").exists()


def test_a_small_disk_is_refused_with_the_fix(checkout: Checkout) -> None:
    code, said = checkout.install(PALATE_INSTALL_GB="1000000")
    assert code == 1
    assert "GB free, the installation needs 1000000 GB" in said
    assert "PALATE_VENV" in said


def test_down_before_up_says_so(checkout: Checkout) -> None:
    done = subprocess.run(
        [checkout.folder / "scripts" / "down"], env=checkout.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "nothing is installed" in done.stderr
