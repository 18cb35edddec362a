"""`palate rollout` against a running endpoint with the real state machine: what it asks, prints and writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.memory_store import MemoryStore
from tests.endpoint import Endpoint, Setup, bare_release, made_up_spec, serve
from tests.integration.test_cli import Palate, assert_one_line, env_of, palate
from tests.rollout_desk import desk, past
from tests.rollout_sample import entries, evidence
from tests.rollout_stores import live_verdict
from tests.waiting import wait_for

__all__ = ["palate"]


def no_loading(_: Any) -> Any:
    raise OSError("nothing is loaded here")


@pytest.fixture
def teas(tmp_path: Path) -> Iterator[Endpoint]:
    """An endpoint with `teas`, of which version 1 is stable and 2 waits, and nobody who decides."""
    releases = MemoryStore()
    for mark in ("first", "second"):
        bare_release(releases, made_up_spec("teas"), mark)
    releases.set_alias("teas", "stable", 1)
    with serve(tmp_path / "home", releases, ["teas"], Setup(load=no_loading)) as running:
        yield running


def test_a_rollout_is_steered_from_the_shell(palate: Palate, teas: Endpoint) -> None:
    env = env_of(teas)
    with desk(teas.stores, "teas"):
        started = palate("rollout", "start", "teas", "2", "--why", "new [synonyms]", "--by", "kim", env=env)
        assert started.status == 0, started
        assert "teas: started version 2, by kim (key test " in started.out
        assert "new [synonyms]" in started.out
        status = palate("rollout", "status", "teas", env=env).out
        assert "version 2 against 1" in status
        assert "new [synonyms]" in status
        assert "loading" in status
        assert palate("rollout", "status", "teas", "--json", env=env).json["rollout"]["version"] == 2
        assert_one_line(palate("rollout", "start", "teas", "2", "--why", "again", env=env), "on its way already")
        assert palate("rollout", "pause", "teas", "--why", "lunch", env=env).status == 0
        assert "paused" in palate("rollout", "status", "teas", env=env).out
        assert palate("rollout", "resume", "teas", "--why", "back", env=env).status == 0
        assert_one_line(palate("rollout", "promote", "teas", "--why", "now", env=env), "being loaded")
        assert palate("rollout", "abort", "teas", "--why", "changed our minds", env=env).status == 0
        listed = palate("rollout", "list", "teas", env=env).out
        assert "aborted" in listed
        assert "changed our minds" in listed
        assert palate("rollout", "list", "teas", "--json", env=env).json[0]["outcome"] == "aborted"
        told = palate("rollout", "explain", "teas", env=env).out
        assert told.startswith("teas, rollout 1: version 2 was aborted after")
        assert "kim (key test " in told
        switched = palate("rollout", "switch", "teas", "2", "--why", "urgent", "--json", env=env)
        assert switched.json["entries"][-1]["kind"] == "switched"
        back = palate("rollout", "rollback", "teas", "--version", "2", "--why", "wrong", env=env)
        assert "rolled back version 2" in back.out
        status = palate("rollout", "status", "teas", env=env).out
        assert "stable is version 1" in status
        assert "version 2 is quarantined: wrong" in status


def test_status_shows_what_each_guard_sees_now(palate: Palate, teas: Endpoint) -> None:
    env = env_of(teas)
    with desk(teas.stores, "teas"):
        palate("rollout", "start", "teas", "2", "--why", "new", env=env)
        teas.stores.journal.show_verdict("desk", live_verdict(1, time.time() - 40, app="teas"))
        status = palate("rollout", "status", "teas", env=env).out
        told = palate("rollout", "status", "teas", "--json", env=env).json["rollout"]
    rows = [line.split() for line in status.splitlines()]
    assert ["error", "Fail", "0.3", "(0.2..0.4)", "0", "(0..0.01)", "∞", "/", "400"] in rows
    assert ["reward", "Inconclusive", "-", "-", "1", "/", "100"] in rows
    assert "reward: no answers yet" in status
    assert "47 of 49 answers (95.9%)" in status
    assert told["verdict"]["guards"][0]["failed_after"] == 31


def test_who_asks_is_the_user_of_this_machine(palate: Palate, teas: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "made-up-user")
    palate("rollout", "pause", "teas", "--why", "x", env=env_of(teas))
    assert [c.who.split(" ")[0] for c in teas.stores.journal.commands()] == ["made-up-user"]


def test_without_a_controller_it_says_so(palate: Palate, teas: Endpoint) -> None:
    env = env_of(teas)
    assert "no controller is running" in palate("rollout", "start", "teas", "2", "--why", "x", env=env).out
    status = palate("rollout", "status", "teas", env=env).out
    assert "no controller is running" in status
    assert "commands that wait: start" in status


def test_errors_are_one_line(palate: Palate, teas: Endpoint) -> None:
    env = env_of(teas)
    assert_one_line(palate("rollout", "start", "teas", "2", env=env), "--why")
    assert_one_line(palate("rollout", "start", "teas", "2", "--why", " ", env=env), "why")
    assert_one_line(palate("rollout", "start", "teas", "9", "--why", "x", env=env), "version 9", "palate releases teas")
    assert_one_line(palate("rollout", "status", "nothing", env=env), "nothing", "teas")
    assert_one_line(palate("rollout", "explain", "teas", env=env), "no rollout yet", "palate rollout start teas")
    assert_one_line(palate("rollout", "report", "teas", "4", env=env), "no rollout 4")
    assert_one_line(palate("rollout", "status", "teas"), "palate up")
    away = {**env, "PALATE_URL": "http://127.0.0.1:1"}
    assert_one_line(palate("rollout", "abort", "teas", "--why", "x", env=away), "127.0.0.1:1")
    assert palate("rollout", "start", "teas", "second", "--why", "x", env=env).status == 2
    assert teas.stores.journal.commands() == []


def test_the_report_is_a_file(palate: Palate, teas: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past(teas.stores, entries(), evidence())
    env, file = env_of(teas), tmp_path / "incident [1].html"
    ran = palate("rollout", "report", "teas", "--html", str(file), env=env)
    assert ran.status == 0, ran
    assert "incident [1].html" in ran.out
    assert "version 7 was rolled back" in file.read_text(encoding="utf-8")
    assert palate("rollout", "report", "teas", "3", "--html", "-", env=env).out == file.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    palate("rollout", "report", "teas", env=env)
    assert (tmp_path / "teas-rollout-3.html").is_file()
    assert_one_line(palate("rollout", "report", "teas", "--html", str(tmp_path / "no" / "x.html"), env=env), "--html")


@pytest.mark.parametrize(("action", "status"), [("abort", 1), ("promote", 0)])
def test_wait_follows_to_the_end(palate: Palate, teas: Endpoint, action: str, status: int) -> None:
    """Another person ends it while this one watches; promotion of what cannot be loaded is a switch to it."""
    watched = teas.stores.journal

    def end_it() -> None:
        wait_for(lambda: watched.states()["teas"].rollout is not None)
        time.sleep(1.5)  # so that it is seen running
        with teas.client() as client:
            if action == "abort":
                client.post("/v1/apps/teas/rollout", json={"action": "abort", "why": "enough"})
            else:
                client.post("/v1/apps/teas/rollout", json={"action": "switch", "version": 2, "why": "enough"})
                state = watched.states()["teas"]
                done = replace(entries()[0], rollout=1, at_s=time.time(), kind="baked", version=2, why="good", id=0)
                watched.record("desk", replace(state, rollout=None), None, [done])

    with desk(teas.stores, "teas"):
        other = threading.Thread(target=end_it, daemon=True)
        other.start()
        ran = palate("rollout", "start", "teas", "2", "--why", "new", "--wait", env=env_of(teas))
        other.join(30)
    assert ran.status == status, ran
    assert "rollout 1, version 2: loading" in ran.out
    assert f"version 2 was {'aborted' if action == 'abort' else 'promoted'}" in ran.out
