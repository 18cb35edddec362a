"""`palate generate-batch`, killed in the middle: the next run goes on, and every input has exactly one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.openai_server import Reply, openai_server
from tests.waiting import wait_for
from training.batch.file import read_lines

PROMPTS, BEFORE = 80, 20
PALATE = Path(sys.executable).parent / "palate"


def test_a_killed_batch_is_gone_on_with_and_two_writers_are_refused(tmp_path: Path) -> None:
    inputs, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    told = {"role": "system", "content": "Say it."}
    lines = [{"id": f"p{n}", "messages": [told, {"role": "user", "content": f"number {n}"}]} for n in range(PROMPTS)]
    inputs.write_text("\n".join(map(json.dumps, lines)))
    gate = threading.Event()

    def answer(number: int, text: str) -> Reply:
        if number >= BEFORE:
            gate.wait()
        return Reply(text.upper())

    with openai_server(answer) as server:
        command = [str(PALATE), "generate-batch", "--model", "tiny", "--url", server.url, "--input", str(inputs),
                   "--output", str(out), "--concurrency", "2", "--json"]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as first:
            try:
                wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") > 5, what="the first lines")
                second = subprocess.run(command, capture_output=True, text=True, check=False)
            finally:
                os.kill(first.pid, signal.SIGKILL)
        gate.set()
        assert second.returncode == 1
        assert "another process is writing" in second.stderr
        done = out.read_bytes().count(b"\n") - 1
        assert 0 < done < PROMPTS
        with out.open("ab") as file:
            file.write(b'{"id":"')  # what a power cut leaves
        asked = len(server.requests)
        again = subprocess.run(command, check=True, capture_output=True, text=True)
        assert len(server.requests) - asked == PROMPTS - done, "what was done is not asked for again"
    assert json.loads(again.stdout) | {"output": ""} == {
        "output": "", "before": done, "answered": PROMPTS - done, "errors": 0, "tokens": 2 * (PROMPTS - done),
    }  # fmt: skip
    assert [(line["id"], line["text"]) for line in read_lines(out)] == [
        (f"p{n}", f"NUMBER {n}") for n in range(PROMPTS)
    ]
