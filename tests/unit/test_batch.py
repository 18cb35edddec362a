"""Batches: each input gets exactly one line, whatever the model, the file or the process does."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from referencing.exceptions import Unresolvable

from serving.errors import BadRequest, Overloaded, PalateError, PhaseFailed, ReplicaLost, StoreUnavailable
from serving.fakes import FakeLanguageModel
from serving.ports import LanguageRequest
from training.batch.ask import REFUSALS_IN_A_ROW, Asker, Patience
from training.batch.file import read_lines
from training.batch.generate import PromptWorker, Wish, count_inputs, read_inputs
from training.batch.run import run_again, run_batch
from training.errors import BatchStopped

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
Answers = Sequence[str | PalateError] | Callable[[LanguageRequest], str | PalateError]


def write(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    return path


def worker(answers: Answers, wish: Wish | None = None, at_once: int = 4, tries: int = 3) -> PromptWorker:
    model = FakeLanguageModel(answers)
    return PromptWorker(Asker(model, at_once, Patience(tries, 0.001, 0.01)), wish or Wish())


def run(inputs: Path, out: Path, by: PromptWorker, again: bool = False, restart: bool = False) -> list[dict[str, Any]]:
    entries = read_inputs(inputs)
    asyncio.run(run_again(entries, out, by) if again else run_batch(entries, out, by, restart))
    return list(read_lines(out))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", [{"id": f"p{n}", "prompt": f"say {n}"} for n in range(30)])


def say(request: LanguageRequest) -> str:
    return request.messages[-1].content.upper()


def test_each_prompt_gets_its_answer_in_the_order_of_the_file(prompts: Path, tmp_path: Path) -> None:
    lines = run(prompts, tmp_path / "out.jsonl", worker(say))
    assert [(line["id"], line["text"]) for line in lines] == [(f"p{n}", f"SAY {n}") for n in range(30)]
    assert lines[0]["finish_reason"] == "stop"
    assert lines[0]["usage"]["completion_tokens"] == 2
    assert count_inputs(prompts) == 30


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ({"text": "x"}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"messages": []}, "empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "schema": [1]}, "schema"),
        ({"prompt": "x", "schema": {"type": "nothing"}}, "no JSON schema"),
    ],
)
def test_a_bad_line_says_why_and_the_others_go_on(line: Any, why: str, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", [{"prompt": "a"}, line, {"prompt": "b"}])
    first, bad, last = run(inputs, tmp_path / "out.jsonl", worker(say))
    assert (first["text"], last["text"]) == ("A", "B")
    assert why in bad["error"]
    assert [one["id"] for one in (first, bad, last)] == ["1", "2", "3"]


def test_what_may_pass_is_waited_for(prompts: Path, tmp_path: Path) -> None:
    faults: list[PalateError] = [
        Overloaded("full", retry_after_s=0.001), StoreUnavailable("away"), ReplicaLost("gone"),
    ]  # fmt: skip

    def answer(request: LanguageRequest) -> str | PalateError:
        return faults.pop() if faults else say(request)

    lines = run(prompts, tmp_path / "out.jsonl", worker(answer, tries=5))
    assert [line["text"] for line in lines] == [f"SAY {n}" for n in range(30)]


@pytest.mark.parametrize("fault", [StoreUnavailable("away"), PhaseFailed("broken", phase="generate")])
def test_a_model_that_is_away_ends_the_job_and_the_next_run_goes_on(
    fault: PalateError, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    first_ten = {f"say {n}" for n in range(10)}
    with pytest.raises(BatchStopped):
        run(prompts, out, worker(lambda r: say(r) if r.messages[-1].content in first_ten else fault))
    assert len(list(read_lines(out))) == 10
    asked: list[str] = []

    def later(request: LanguageRequest) -> str:
        asked.append(request.messages[-1].content)
        return say(request)

    lines = run(prompts, out, worker(later))
    assert [line["id"] for line in lines] == [f"p{n}" for n in range(30)]
    assert len(asked) == 20


def test_a_model_that_refuses_everything_ends_the_job(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(BatchStopped, match=f"refused {REFUSALS_IN_A_ROW}"):
        run(prompts, tmp_path / "out.jsonl", worker([BadRequest("no")], at_once=1))


def filtered() -> PalateError:
    fault = PhaseFailed("ended its answer: content_filter", phase="generate")
    fault.field = "messages"
    return fault


@pytest.mark.parametrize("fault", [filtered(), StoreUnavailable("HTTP 500"), ReplicaLost("died of it")])
@pytest.mark.parametrize("bad", [3, 29])
def test_an_input_that_alone_fails_is_an_error_and_the_others_go_on(
    fault: PalateError, bad: int, prompts: Path, tmp_path: Path
) -> None:
    by = worker(lambda r: fault if r.messages[-1].content == f"say {bad}" else say(r), at_once=1)
    lines = run(prompts, tmp_path / "out.jsonl", by)
    assert [line["id"] for line in lines if "error" in line] == [f"p{bad}"]
    assert fault.detail in lines[bad]["error"]
    assert len(lines) == 30


def test_no_room_is_no_inputs_fault(prompts: Path, tmp_path: Path) -> None:
    full = Overloaded("full", retry_after_s=0.001)
    with pytest.raises(BatchStopped, match="full"):
        run(prompts, tmp_path / "out.jsonl", worker(lambda r: full if r.messages[-1].content == "say 3" else say(r)))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"n": 123456789012345678901234567890}', "64 bits"),
        ('{"n": 1, "x": [-9223372036854775809]}', "64 bits"),
        ('{"n": 1, "x": NaN}', "JSON"),
        ('{"n": 1, "x": 1e999}', "JSON"),
        ('{"n": 1, "x": "\\ud800"}', "JSON"),
        ('{"n": 1, "x": ' + "[" * 300 + "]" * 300 + "}", "Recursion"),
    ],
)
def test_json_that_cannot_be_written_as_it_was_said_is_an_error(answer: str, why: str, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    [line] = run(inputs, tmp_path / "out.jsonl", worker([answer], Wish(schema=SCHEMA)))
    assert why in line["error"]
    assert line["text"] == answer


def test_numbers_that_fit_are_kept_as_they_are(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    said = '{"n": 18446744073709551615, "x": [1e300, -0.5, -9223372036854775808]}'
    [line] = run(inputs, tmp_path / "out.jsonl", worker([said], Wish(schema=SCHEMA)))
    assert line["data"] == json.loads(said)


def test_half_characters_are_joined_or_replaced(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    [line] = run(inputs, tmp_path / "out.jsonl", worker(["\ud83c\udf4e red \ud83c"]))
    assert line["text"] == "\U0001f34e red \ufffd"


def test_a_refused_line_is_an_error_and_can_be_asked_again(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = run(prompts, out, worker(lambda r: BadRequest("too long") if r.messages[-1].content == "say 3" else say(r)))
    assert [line["id"] for line in lines if "error" in line] == ["p3"]
    asked: list[str] = []

    def better(request: LanguageRequest) -> str:
        asked.append(request.messages[-1].content)
        return say(request)

    again = run(prompts, out, worker(better), again=True)
    assert asked == ["say 3"]
    assert [line["text"] for line in again] == [f"SAY {n}" for n in range(30)]
    assert again[:3] == lines[:3]


def test_an_answer_that_does_not_fit_is_drawn_again_then_an_error(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    good = worker(["{}", "no", '{"n": 1}'], Wish(schema=SCHEMA))
    assert run(inputs, tmp_path / "good.jsonl", good)[0]["data"] == {"n": 1}
    [line] = run(inputs, tmp_path / "bad.jsonl", worker(['{"n": "x"}'], Wish(schema=SCHEMA)))
    assert "does not fit the schema" in line["error"]
    assert line["text"] == '{"n": "x"}'


def test_a_schema_elsewhere_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: fetched.append(address))
    inputs = write(tmp_path / "in.jsonl", [{"prompt": "a", "schema": {"$ref": "http://10.0.0.1/x"}}])
    with suppress(Unresolvable):
        run(inputs, tmp_path / "out.jsonl", worker(lambda _: "{}"))
    assert fetched == []


def test_another_wish_does_not_go_on(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(prompts, out, worker(say))
    with pytest.raises(BatchStopped, match="--restart"):
        run(prompts, out, worker(say, Wish(max_tokens=9)))
    assert len(run(prompts, out, worker(say, Wish(max_tokens=9)), restart=True)) == 30
    assert out.with_name("out.jsonl.previous").is_file()


def test_other_inputs_do_not_go_on(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(prompts, out, worker(say))
    write(prompts, [{"id": "p0", "prompt": "something else"}])
    for again in (False, True):
        with pytest.raises(BatchStopped, match="other inputs"):
            run(prompts, out, worker(say), again)
