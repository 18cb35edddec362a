"""Checkpoints are complete or absent, and only those of the same task are continued from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from training.errors import TrainingRefused
from training.job.checkpoint import Checkpoints


def write(text: str):
    def into(folder: Path) -> None:
        assert not list(folder.iterdir()), "the writer gets an empty folder"
        (folder / "deep").mkdir()
        (folder / "deep" / "state").write_text(text)

    return into


def text_of(checkpoints: Checkpoints) -> str | None:
    newest = checkpoints.newest()
    return None if newest is None else (newest.folder / "deep" / "state").read_text()


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", "task", 1)
    assert checkpoints.newest() is None
    for step in (5, 50, 1000):
        saved = checkpoints.save(step, write(f"after {step}"))
        assert (saved.step, text_of(checkpoints)) == (step, f"after {step}")
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert checkpoints.at(50).folder.is_dir()


def test_a_writer_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "task", 1)
    checkpoints.save(1, write("good"))

    def half(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        checkpoints.save(2, half)
    assert text_of(checkpoints) == "good"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_not_seen_and_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "task", 1)
    checkpoints.save(1, write("good"))
    shutil.copytree(tmp_path / "step-000000001", tmp_path / ".partial-left")
    assert text_of(checkpoints) == "good"
    checkpoints.save(2, write("better"))
    assert not (tmp_path / ".partial-left").exists()


def test_a_full_disk_is_named_and_the_one_before_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "task", 1)
    checkpoints.save(1, write("good"))

    def too_much(folder: Path) -> None:
        (folder / "state").symlink_to("/dev/full")
        (folder / "state").write_bytes(b"0" * 10_000)

    with pytest.raises(TrainingRefused, match=r"is full: the checkpoint of step 2 .*Free some space"):
        checkpoints.save(2, too_much)
    assert text_of(checkpoints) == "good"


@pytest.mark.parametrize("damage", ["cut", "lost", "marker", "no marker"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, "task", 1)
    checkpoints.save(1, write("older"))
    checkpoints.save(2, write("newer"))
    newest = tmp_path / "step-000000002"
    match damage:
        case "cut":
            (newest / "files" / "deep" / "state").write_text("new")
        case "lost":
            (newest / "files" / "deep" / "state").unlink()
        case "marker":
            (newest / "checkpoint.json").write_text("{")
        case "no marker":
            (newest / "checkpoint.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert text_of(checkpoints) == "older"
    assert "step-000000002 is not used" in caplog.text
    checkpoints.save(2, write("again"))
    assert text_of(checkpoints) == "again"


@pytest.mark.parametrize(("digest", "world", "why"), [("other", 1, "another task"), ("task", 2, "of 1 workers")])
def test_a_foreign_one_is_passed_over_and_goes_with_the_first_own(
    tmp_path: Path, digest: str, world: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    Checkpoints(tmp_path, "task", 1).save(900, write("foreign"))
    checkpoints = Checkpoints(tmp_path, digest, world)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() is None
    assert why in caplog.text
    checkpoints.save(10, write("own"))
    assert text_of(checkpoints) == "own"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000010"]


def test_one_that_cannot_be_seen_from_a_node_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match="storage that all nodes"):
        Checkpoints(tmp_path, "task", 2).at(3)
