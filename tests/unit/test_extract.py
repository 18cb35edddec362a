"""Extraction: rules, a server that misbehaves over real HTTP, and the file that a job leaves."""

from __future__ import annotations

import asyncio
import fcntl
import json
from pathlib import Path
from time import monotonic

import pytest

from tests.contract.test_extractor import FORM, LEXICON
from tests.openai_server import RIGHT, OpenAiServer, Plan, Reply, openai_server, right_answer
from training.batch.ask import Asker, Patience
from training.batch.connect import read_key, server_model
from training.batch.file import Entry, read_lines
from training.errors import BatchStopped
from training.extract.job import Tally, extract_all, run_job
from training.extract.model import ModelExtractor, json_in
from training.extract.ports import Extraction, Form
from training.extract.rules import KeywordRules

RULES = KeywordRules(FORM, LEXICON)
INPUTS = [Entry(f"id-{n}", f"review {n}: flyaways, says my husband") for n in range(40)]


def ask(
    plan: Plan,
    texts: list[str],
    tries: int = 8,
    at_once: int = 32,
    timeout_s: float = 120.0,
    longest_wait_s: float = 0.3,
) -> tuple[list[Extraction], OpenAiServer]:
    """The answers to `texts` from a server that follows `plan`."""

    async def run(url: str) -> list[Extraction]:
        async with server_model(url, "tiny", "secret", timeout_s) as model:
            asker = Asker(model, at_once, Patience(tries, 0.01, longest_wait_s))
            extractor = ModelExtractor(FORM, asker, RULES)
            return list(await asyncio.gather(*(extractor.extract(text) for text in texts)))

    with openai_server(plan) as server:
        return asyncio.run(run(server.url)), server


def first(*replies: Reply) -> Plan:
    """These replies in turn, then right ones."""
    return lambda number, _: replies[number] if number < len(replies) else RIGHT


# ---- Rules


def test_rules_find_phrases_whole_words_only_the_longest_first() -> None:
    rules = KeywordRules(FORM, {"who": {"men": ["my man"], "manager": ["my man ager"]}, "when": {"night": []},
                                "why": {"frizz": ["fly aways"]}})  # fmt: skip
    assert rules.values("For MY  man, at night. Nightly fly-aways!") == {"who": ["men"], "when": ["night"],
                                                                       "why": ["frizz"]}  # fmt: skip
    assert rules.values("my man ager") == {"who": ["manager"], "when": [], "why": []}
    assert rules.values("nightly romance") == {"who": [], "when": [], "why": []}


def test_rules_keep_the_first_few_and_each_once() -> None:
    rules = KeywordRules(FORM, {"who": {}, "when": {}, "why": {w: [] for w in "abcdefg"}}, most=3)
    assert rules.values("g f g e d c")["why"] == ["g", "f", "e"]


def test_a_lexicon_of_other_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="who"):
        KeywordRules(FORM, {"why": {}})


# ---- A server that misbehaves


def test_the_answer_comes_from_the_model_and_the_schema_goes_to_it() -> None:
    found, server = ask(lambda n, t: RIGHT, ["soft hair"])
    assert found == [Extraction(right_answer("soft hair"), "model", 1)]
    sent = server.requests[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", FORM.schema())
    assert {k.lower(): v for k, v in server.headers[0].items()}["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=429, headers={"Retry-After": "0"}),
        Reply(status=500),
        Reply(status=503, body="<html>gateway</html>"),
        Reply(cut=True),
        Reply(body="not json at all"),
        Reply(body='{"choices": []}'),
        Reply(delay_s=0.6),
    ],
    ids=["429", "500", "503", "cut", "not json", "no choice", "slow"],
)
def test_what_is_the_servers_fault_is_tried_again(fault: Reply) -> None:
    found, server = ask(first(fault, fault), ["soft hair"], timeout_s=0.3)
    assert found == [Extraction(right_answer("soft hair"), "model", 1)]
    assert len(server.requests) == 3


def test_what_one_is_told_about_the_server_holds_for_all() -> None:
    started = monotonic()
    busy = Reply(status=429, headers={"Retry-After": "1"})
    found, _ = ask(first(busy, busy), ["a", "b"], at_once=1, longest_wait_s=5.0)
    assert [f.by for f in found] == ["model", "model"]
    assert monotonic() - started >= 0.9


@pytest.mark.parametrize("around", ["Sure!\n```json\n%s\n```", "<think>{a}</think>%s", "%s\n\nHope it helps."])
def test_json_is_found_in_what_a_model_says_around_it(around: str) -> None:
    assert json.loads(json_in(around % '{"why": ["x"]}')) == {"why": ["x"]}


def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_fault() -> None:
    found, server = ask(first(Reply('{"who": "all"}'), Reply("I cannot")), ["soft hair"])
    assert found == [Extraction(right_answer("soft hair"), "model", 3)]
    assert "who" in server.requests[1]["messages"][-1]["content"]


def test_after_two_repairs_the_rules_answer() -> None:
    found, server = ask(lambda n, t: Reply("no"), ["flyaways"])
    assert found == [Extraction({"who": [], "when": [], "why": ["frizz"]}, "rules", 3)]
    assert len(server.requests) == 3


def test_a_text_the_server_refuses_gets_rules_and_the_others_go_on() -> None:
    found, _ = ask(lambda n, t: Reply(status=400) if "flyaways" in t else RIGHT, ["flyaways", "b", "c"])
    assert [f.by for f in found] == ["rules", "model", "model"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [(Reply(status=401), "key"), (Reply(status=404), "404"), (Reply(status=503), "3 tries")],
)
def test_a_server_that_cannot_help_stops_the_job(fault: Reply, words: str) -> None:
    with pytest.raises(BatchStopped, match=words):
        ask(lambda n, t: fault, ["a"], tries=3)


def test_a_server_that_refuses_everything_stops_the_job() -> None:
    with pytest.raises(BatchStopped, match="without one"):
        ask(lambda n, t: Reply(status=400, body="no json_schema here"), [f"t{n}" for n in range(30)], at_once=2)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    _, server = ask(lambda n, t: Reply(delay_s=0.02), [f"t{n}" for n in range(12)], at_once=3)
    assert server.most_at_once == 3


def test_keys_come_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("abc\n")
    monkeypatch.setenv("BEAUTY_TEST_KEY", "def")
    assert (read_key(), read_key("BEAUTY_TEST_KEY"), read_key(file=tmp_path / "key")) == ("", "def", "abc")
    for wrong in ({"variable": "BEAUTY_NO_SUCH"}, {"file": tmp_path / "none"}):
        with pytest.raises(BatchStopped):
            read_key(**wrong)  # type: ignore[arg-type]


# ---- The file


def run(out: Path, plan: Plan, inputs: list[Entry] = INPUTS, restart: bool = False) -> Tally:
    async def go(url: str) -> Tally:
        async with server_model(url, "tiny") as model:
            extractor = ModelExtractor(FORM, Asker(model, 4, Patience(2, 0.01, 0.1)), RULES)
            return await extract_all(inputs, out, extractor, restart)

    with openai_server(plan) as server:
        return asyncio.run(go(server.url))


def test_each_input_gets_one_line_in_its_order_though_answers_come_in_another(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    tally = run(out, lambda n, t: Reply(delay_s=0.05 if n % 4 == 0 else 0.0))
    assert [line["id"] for line in read_lines(out)] == [text.id for text in INPUTS]
    assert (tally.before, tally.model, tally.rules) == (0, 40, 0)


def test_a_server_that_goes_away_leaves_what_was_found_and_the_next_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(BatchStopped, match="tries"):
        run(out, lambda n, t: RIGHT if int(t.split()[1][:-1]) < 20 else Reply(status=503))
    assert [line["id"] for line in read_lines(out)] == [text.id for text in INPUTS[:20]]
    tally = run(out, lambda n, t: RIGHT)
    assert (tally.before, tally.model) == (20, 20)
    assert [line["id"] for line in read_lines(out)] == [text.id for text in INPUTS]


@pytest.mark.parametrize("left", [b'{"id": "id-3', b'{"id":"id-40","of":"0","values":{},"by":"model"}', b"\xff\x00"])
def test_a_half_line_is_cut_off(tmp_path: Path, left: bytes) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run_job(INPUTS, whole, RULES)
    run_job(INPUTS[:3], out, RULES)
    with out.open("ab") as file:
        file.write(left)
    run_job(INPUTS, out, RULES)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_a_first_line_that_was_cut_off_begins_anew(tmp_path: Path, kept: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run_job(INPUTS, whole, RULES)
    out.write_bytes(whole.read_bytes()[:kept])
    run_job(INPUTS, out, RULES)
    assert out.read_bytes() == whole.read_bytes()


def test_another_prompt_or_model_does_not_go_on_but_begins_anew_where_told(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run_job(INPUTS[:5], out, RULES)
    before = out.read_bytes()
    other = KeywordRules(Form(FORM.name, "Another prompt.", FORM.answer), LEXICON)
    with pytest.raises(BatchStopped, match="--restart"):
        run_job(INPUTS, out, other)
    assert out.read_bytes() == before
    assert run_job(INPUTS, out, other, restart=True).rules == 40
    assert out.with_name("out.jsonl.previous").read_bytes() == before


def test_other_inputs_do_not_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run_job(INPUTS[:5], out, RULES)
    for others in (INPUTS[1:], [Entry("id-0", "another text"), *INPUTS[1:]], INPUTS[:4]):
        with pytest.raises(BatchStopped, match="other inputs"):
            run_job(others, out, RULES)


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"precious": 1}\n')
    with pytest.raises(BatchStopped, match="no file of a batch"):
        run_job(INPUTS, out, RULES)
    assert out.read_text() == '{"precious": 1}\n'


def test_only_one_writes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with out.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BatchStopped, match="another process"):
            run_job(INPUTS, out, RULES)
    assert run_job(INPUTS, out, RULES).rules == 40
