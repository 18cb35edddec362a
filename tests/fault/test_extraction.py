"""Extraction with a model, killed in the middle: the next run goes on, and every review has exactly one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.openai_server import Reply, openai_server, right_answer
from tests.waiting import wait_for
from training.batch.file import read_lines

EXAMPLE = Path(__file__).parents[2] / "examples" / "beauty-finder"
REVIEWS = 120
CONCURRENCY = 4


def test_a_killed_extraction_is_gone_on_with(tmp_path: Path) -> None:
    def beauty(*arguments: str) -> list[str]:
        return [sys.executable, str(EXAMPLE / "beauty.py"), *arguments, "--data", str(tmp_path)]

    subprocess.run(beauty("generate", "--items", "50", "--reviews", str(REVIEWS)), check=True, capture_output=True)
    out = tmp_path / "keywords.jsonl"
    with openai_server(lambda number, text: Reply(delay_s=0.02)) as server:
        extract = beauty(
            "extract", "--what", "keywords", "--url", server.url, "--model", "tiny", "--concurrency", str(CONCURRENCY)
        )
        with subprocess.Popen(extract, stderr=subprocess.DEVNULL) as first:
            wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") > 20, what="the first lines")
            os.kill(first.pid, signal.SIGKILL)
        done = out.read_bytes().count(b"\n") - 1
        assert 0 < done < REVIEWS
        with out.open("ab") as file:
            file.write(b'{"id":"')  # what a power cut leaves
        asked = len(server.requests)
        again = subprocess.run(extract, check=True, capture_output=True, text=True)
        # What the killed one had sent may reach the server late.
        late = len(server.requests) - asked - (REVIEWS - done)
        assert 0 <= late <= CONCURRENCY, "what was done is not asked for again"
    assert f"{done:,} lines were there" in again.stderr
    raw = [json.loads(line) for line in (tmp_path / "raw" / "All_Beauty.jsonl").read_text().splitlines()]
    found = list(read_lines(out))
    assert [line["id"] for line in found] == [str(number) for number in range(1, REVIEWS + 1)]
    assert [line["values"] for line in found] == [right_answer(review["text"]) for review in raw]
