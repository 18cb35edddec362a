"""The replay buffer: what it keeps, that order and repetition do not matter, and what a kill leaves."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import wait_for
from training.dataset.example import Example
from training.errors import DatasetInvalid
from training.taste2vec.online import first_lesson, next_lesson
from training.taste2vec.replay import ReplayBuffer


def made_up(count: int, weight: float = 1.0) -> list[Example]:
    return [
        Example(f"q{n}", f"i{n % 7}", n % 2, weight, at_s=float(n), record={"metrics": {"m": n}}) for n in range(count)
    ]


def test_it_never_holds_more_than_its_size_and_reads_back(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path / "b.jsonl", 50)
    buffer.add(made_up(40))
    assert len(buffer) == 40
    buffer.add(made_up(400))
    assert len(buffer) == 50
    assert list(ReplayBuffer(tmp_path / "b.jsonl", 50)) == list(buffer)
    assert list(ReplayBuffer(tmp_path / "other.jsonl", 50, seed=1)) == []


def test_order_portions_and_repetition_make_no_difference(tmp_path: Path) -> None:
    examples = made_up(300)
    whole = ReplayBuffer(tmp_path / "whole.jsonl", 60)
    whole.add(examples)
    parts = ReplayBuffer(tmp_path / "parts.jsonl", 60)
    shuffled = random.Random(3).sample(examples, len(examples))
    for start in range(0, 300, 70):
        parts.add(shuffled[start : start + 90])
        parts = ReplayBuffer(tmp_path / "parts.jsonl", 60)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "parts.jsonl").read_bytes()


def test_the_sample_is_even_and_weighted(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path / "b.jsonl", 500)
    buffer.add(made_up(4000))
    middle = sum(e.at_s < 2000 for e in buffer)
    assert 200 < middle < 300  # 4.5 standard deviations of an even draw
    heavy = ReplayBuffer(tmp_path / "h.jsonl", 500)
    heavy.add([*made_up(2000), *made_up(2000, weight=4.0)])
    assert sum(e.weight == 4.0 for e in heavy) > 350


def test_another_seed_is_another_sample(tmp_path: Path) -> None:
    kept = []
    for seed in (0, 1):
        buffer = ReplayBuffer(tmp_path / f"{seed}.jsonl", 30, seed)
        buffer.add(made_up(300))
        kept.append({e.query for e in buffer})
    assert kept[0] != kept[1]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("no\n")
    with pytest.raises(DatasetInvalid, match="line 1"):
        ReplayBuffer(tmp_path / "b.jsonl")


PROGRAM = """
import sys
from pathlib import Path
from training.dataset.example import Example
from training.taste2vec.replay import ReplayBuffer
buffer, n = ReplayBuffer(Path(sys.argv[1]), 500), 0
while True:
    buffer.add([Example(f"q{n + i}", "i", 1) for i in range(100)])
    n += 100
"""


def test_a_kill_leaves_a_whole_buffer(tmp_path: Path) -> None:
    for wait_s in (0.05, 0.2):
        file = tmp_path / f"{wait_s}.jsonl"
        running = subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)])
        try:
            wait_for(file.is_file)
            time.sleep(wait_s)
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
        buffer = ReplayBuffer(file, 500)
        assert len(buffer) in (100, 200, 300, 400, 500)
        buffer.add(made_up(10))
        assert sorted(p.name for p in tmp_path.glob(f"*{wait_s}*")) == [file.name]


def test_an_update_learns_what_is_new_and_replays_what_is_not(tmp_path: Path) -> None:
    examples = [*made_up(20), Example("from a file", "i1", 1)]
    assert first_lesson(examples).until_s == 19
    lesson = next_lesson(examples, 14.0, tmp_path / "b.jsonl", 10, seed=0)
    assert [e.query for e in lesson.fresh] == ["q15", "q16", "q17", "q18", "q19"]
    assert len(lesson.old) == 10
    assert not {e.query for e in lesson.fresh} & {e.query for e in lesson.old}
    assert (lesson.until_s, lesson.update) == (19.0, True)
    assert next_lesson(examples, 14.0, tmp_path / "b.jsonl", 10, seed=0) == lesson
    nothing = next_lesson(examples, 19.0, tmp_path / "c.jsonl", 10, seed=0)
    assert (nothing.fresh, nothing.until_s) == ((), 19.0)
