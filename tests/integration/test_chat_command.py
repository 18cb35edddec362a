"""`palate chat` as a person uses it: a process, its input, its terminal's Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.fakes import FakeLanguageModel
from tests.endpoint import Endpoint
from tests.told import GOOD, MADE_UP, told_endpoint, told_spec
from tests.waiting import wait_for


def start(endpoint: Endpoint, *options: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PALATE_URL": endpoint.url, "PALATE_API_KEY": endpoint.key, "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "serving.cli", "chat", "shops", *options],
        env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A shell starts what it leaves in the background with Ctrl-C ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.fixture
def model() -> FakeLanguageModel:
    return FakeLanguageModel([GOOD, MADE_UP, GOOD])


def test_a_talk_has_memory_results_and_says_what_went_wrong(tmp_path: Path, model: FakeLanguageModel) -> None:
    spec = told_spec(understand={"memory": {}})
    with told_endpoint(tmp_path, model, spec) as endpoint:
        talk = start(endpoint, "--session", "s1", "--form", "detailed")
        said, _ = talk.communicate("치킨집 [bold]추천\n/results\n더 싼 데는?\n/new\n/what\n/quit\n", timeout=60)
        assert talk.returncode == 0, said
        assert GOOD in said
        assert "행복치킨" in said.split("더 싼")[0]
        assert "repaired 1x" in said
        assert model.asked[0].messages[0].content == "Tell everything."
        assert "치킨집 [bold]추천" in model.asked[1].messages[-1].content  # remembered
        wrong = start(endpoint, "--form", "premium")
        said, _ = wrong.communicate("치킨\n", timeout=60)
        assert wrong.returncode == 0, said
        assert "there is no form 'premium'" in said
        assert "Traceback" not in said


def test_ctrl_c_ends_the_answer_and_not_the_talk(tmp_path: Path) -> None:
    model = FakeLanguageModel(["행복치킨을 추천해요. " * 300, GOOD], piece_s=0.05)
    with told_endpoint(tmp_path, model) as endpoint:
        talk = start(endpoint)
        assert talk.stdin is not None
        talk.stdin.write("치킨집\n")
        talk.stdin.flush()
        wait_for(lambda: model.running == 1)
        talk.send_signal(signal.SIGINT)
        wait_for(lambda: model.cancelled == 1)
        said, _ = talk.communicate("그래도?\n", timeout=60)
        assert talk.returncode == 0, said
        assert "ended" in said
        assert GOOD in said
