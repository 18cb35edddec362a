"""What is written aside and renamed: whole, or as it was."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from registry.files import replace_file, replacing


@pytest.mark.parametrize("durable", [False, True])
def test_content_is_replaced_and_nothing_else_is_left(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "차", durable=durable)
    assert path.read_text(encoding="utf-8") == "차"
    replace_file(path, b"\0two", durable=durable)
    assert path.read_bytes() == b"\0two"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "old")

    def write() -> None:
        with replacing(path) as aside:
            aside.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "old")
    killed = """
        import os, signal, sys
        from pathlib import Path
        from registry.files import replacing
        with replacing(Path(sys.argv[1]), durable=True) as aside:
            aside.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(killed), str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    replace_file(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path], "what the killed one left is gone"
