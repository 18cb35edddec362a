"""No other installed distribution may own `serving`, `registry` or `training`: it would shadow ours, or ours it."""

from __future__ import annotations

import importlib
from importlib.metadata import distributions
from pathlib import Path

from registry.distributions import OURS, intruders

ROOT = Path(__file__).resolve().parents[2]


def test_no_other_distribution_owns_our_names() -> None:
    assert intruders(distributions()) == []


def test_our_names_import_from_this_checkout() -> None:
    for name in OURS:
        file = importlib.import_module(name).__file__
        assert file is not None
        assert Path(file).resolve() == ROOT / name / "__init__.py"


def test_an_intruder_is_found(tmp_path: Path) -> None:
    for folder, record in {"a": "serving/__init__.py,,\n", "b": "registry.py,,\n", "c": "c/training/x.py,,\n"}.items():
        info = tmp_path / f"{folder}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: other-{folder}\nVersion: 1\n")
        (info / "RECORD").write_text(record)
    assert intruders(distributions(path=[str(tmp_path)])) == ["other-a: serving", "other-b: registry"]
