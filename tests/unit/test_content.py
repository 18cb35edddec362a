"""Digests: the same inputs give the same one on every machine, anything else another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from registry.content import digest_folder, digest_json
from registry.errors import ReleaseRefused
from registry.manifest import from_json, release_digest, to_json
from registry.schema import ComponentRef, Release


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FILES = {"b.txt": b"two", "a/c.txt": b"", "a.txt": b"one"}


def test_a_folder_digest_is_the_documented_one_and_ignores_where_it_lies(tmp_path: Path) -> None:
    digest, size_bytes = digest_folder(write(tmp_path / "x", FILES))
    again = digest_folder(write(tmp_path / "y" / "z", dict(reversed(FILES.items()))))
    assert again == (digest, size_bytes)
    assert size_bytes == 6
    lines = [f"{name}\0{hashlib.sha256(FILES[name]).hexdigest()}\n" for name in ("a/c.txt", "a.txt", "b.txt")]
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {**FILES, "a.txt": b"One"},
        {**FILES, "new": b""},
        {"b.txt": b"two", "a.txt": b"one"},
        {"b.txt": b"two", "c.txt": b"", "a.txt": b"one"},
        {"b.txt": b"one", "a/c.txt": b"", "a.txt": b"two"},
    ],
)
def test_any_difference_gives_another_digest(tmp_path: Path, other: dict[str, bytes]) -> None:
    assert digest_folder(write(tmp_path / "x", FILES))[0] != digest_folder(write(tmp_path / "y", other))[0]


def test_a_folder_without_files_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files"):
        digest_folder(tmp_path)


def test_json_digests_ignore_key_order_only() -> None:
    assert digest_json({"a": 1, "b": {"c": "가", "d": 2}}) == digest_json({"b": {"d": 2, "c": "가"}, "a": 1})
    assert digest_json({"a": [1, 2]}) != digest_json({"a": [2, 1]})


def part(name: str, digest: str) -> ComponentRef:
    return ComponentRef(name, "rules", digest * 64, 1)


def test_a_release_digest_covers_spec_names_and_digests() -> None:
    a, b = part("a", "1"), part("b", "2")
    digest = release_digest({"name": "x"}, (a, b))
    assert digest == release_digest({"name": "x"}, (b, a))
    assert digest != release_digest({"name": "y"}, (a, b))
    assert digest != release_digest({"name": "x"}, (part("a", "2"), part("b", "1")))


def test_a_release_is_its_json() -> None:
    parts = (ComponentRef("i", "index", "1" * 64, 1, "f", {"e": "2" * 64}), part("e", "2"))
    release = Release("x", {"name": "x", "k": [1, {"가": None}]}, parts, 3, "3" * 64, {"m": 0.5}, {"commit": "c"})
    assert from_json(to_json(release)) == release


@pytest.mark.parametrize("spoil", [lambda v: v.pop("spec"), lambda v: v.update(new=1), lambda v: v.pop("components")])
def test_json_that_is_no_release_is_refused(spoil: object) -> None:
    value = to_json(Release("x", {}, (part("a", "1"),), 0, "3" * 64))
    spoil(value)  # type: ignore[operator]
    with pytest.raises(ReleaseRefused, match="publish it again"):
        from_json(value)
