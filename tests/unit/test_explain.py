"""The story of a rollout says how it ended first, and everything that was decided after."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest

from registry.analysis.verdict import GuardResult, Verdict
from registry.explain import by_rollout, duration, entry_json, entry_of, explain, plain, summarize, verdict_of
from registry.traffic import Entry
from tests.rollout_sample import BASE, VERSION, entries, entry


def begun(*more: Entry, who: str = "kim") -> list[Entry]:
    return [entry(0, "started", "new synonyms", who, base=BASE), *more]


def test_the_first_line_says_how_it_ended() -> None:
    lines = explain(entries(), UTC).splitlines()
    assert lines[0] == "teas, rollout 3: version 7 was rolled back after 5 min 32 s by controller."
    assert lines[1].startswith("Why: error: canary fails")
    assert "2026-11-18 11:06:40 +0000, against version 6, by kim (key local 1a2b3c)" in lines[2]


def test_every_entry_is_told_in_order_with_time_who_why_and_numbers() -> None:
    told = [line for line in explain(entries(), UTC).splitlines()[4:] if line and not line.startswith(" ")]
    assert [line.split()[0] for line in told] == sorted(line.split()[0] for line in told)
    assert len(told) == len(entries())
    assert "+0.0 s  started" in told[0]
    assert "kim (key local 1a2b3c): Kim's <b>new</b> synonyms & prices." in told[0]
    assert "step to 5 percent" in told[3]
    verdict = verdict_of(entries()[-1])
    assert verdict is not None
    assert f"Fail after {verdict.canary_requests:,} canary and {verdict.control_requests:,} control" in explain(
        entries()
    )


def test_clock_times_are_those_of_the_zone_and_a_new_day_is_said() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert "20:06:40" in explain(entries(), tokyo)
    late = begun(entry(20 * 3600, "promoted", "every step passed"))
    assert "\n2026-11-19\n07:06:40" in explain(late, UTC)


@pytest.mark.parametrize(
    ("more", "outcome", "words"),
    [
        ([], "loading", "is being loaded."),
        ([entry(5, "ready", "x")], "running", "is on trial."),
        ([entry(5, "ready", "x"), entry(6, "paused", "x", "ann")], "paused", "is paused by ann."),
        ([entry(6, "paused", "x"), entry(7, "resumed", "x")], "loading", "is being loaded."),
        ([entry(9, "promoted", "x")], "baking", "serves as stable and is still watched."),
        ([entry(9, "promoted", "x"), entry(12, "ready", "x")], "baking", "still watched."),
        ([entry(9, "promoted", "x", bake_s=0)], "promoted", "was promoted after 9.0 s by controller."),
        (
            [entry(9, "promoted", "x"), entry(99, "baked", "x")],
            "promoted",
            "was promoted after 1 min 39 s by controller.",
        ),
        ([entry(9, "promoted", "x"), entry(20, "rolled-back", "x")], "rolled back", "was rolled back after 20 s"),
        ([entry(9, "promoted", "x"), entry(20, "superseded", "x", phase="baking")], "promoted", "was promoted"),
        ([entry(9, "superseded", "x", "ann", phase="step")], "superseded", "was superseded after 9.0 s by ann."),
        ([entry(9, "aborted", "x", "ann")], "aborted", "was aborted after 9.0 s by ann."),
        ([entry(9, "refused", "cannot be loaded")], "refused", "was refused after 9.0 s by controller."),
        ([entry(9, "alarm", "x"), entry(9, "note", "x"), entry(9, "refused-command", "x")], "loading", "being loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_outcome_has_its_sentence(more: list[Entry], outcome: str, words: str) -> None:
    summary = summarize(begun(*more))
    assert summary.outcome == outcome
    assert words in summary.headline
    assert (summary.version, summary.base, summary.who, summary.why) == (VERSION, BASE, "kim", "new synonyms")
    assert (summary.ended_s is not None) == (outcome in ("promoted", "rolled back", "superseded", "aborted", "refused"))


def test_another_version_that_is_refused_meanwhile_ends_nothing() -> None:
    other = replace(entry(9, "refused", "its files were altered"), version=9)
    assert summarize(begun(other)).outcome == "loading"


def test_a_switch_is_a_rollout_without_a_trial() -> None:
    summary = summarize([entry(0, "switched", "urgent", "ann", previous=BASE), entry(60, "baked", "all well")])
    assert (summary.outcome, summary.base, summary.who) == ("promoted", BASE, "ann")


def test_entries_are_grouped_newest_rollout_first() -> None:
    grouped = by_rollout([replace(e, rollout=n) for n in (1, 0, 2) for e in begun()])
    assert list(grouped) == [2, 1]


def test_people_cannot_steer_the_terminal() -> None:
    told = explain(begun(entry(1, "aborted", "\x1b[2Jgone\r\nFORGED line", "eve\x07")), UTC)
    assert "\x1b" not in told
    assert "\x07" not in told
    assert not any(line.startswith("FORGED") for line in told.splitlines())
    assert plain("a\nb\tc") == "a b c"


def test_a_verdict_survives_json_and_a_version_that_knows_more_or_less() -> None:
    verdict = Verdict("Fail", "s", (GuardResult("error", "Fail", "g", 0.5, evidence=float("inf")),), 10, 11)
    raw: dict[str, Any] = asdict(verdict)
    raw["guards"] = [{**raw["guards"][0], "evidence": None, "of_tomorrow": 1}]
    assert verdict_of(entry(0, "note", "x", verdict={**raw, "of_tomorrow": 1})) == verdict
    assert verdict_of(entry(0, "note", "x", verdict={"state": "Pass"})) is None
    assert verdict_of(entry(0, "note", "x", verdict="Pass")) is None
    assert verdict_of(entry(0, "note", "x")) is None


def test_an_entry_survives_json() -> None:
    assert entry_of({**entry_json(entries()[0]), "of_tomorrow": 1}) == entries()[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (42, "42 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"),
     (273_600, "3 d 4 h"), (-5, "-5.0 s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_clock_that_was_set_back_is_told_as_it_is() -> None:
    told = explain(begun(entry(-30, "aborted", "x")), UTC)
    assert "-30.0 s" in told


def test_nothing_to_tell() -> None:
    assert explain([]) == "Nothing is written down of this rollout.\n"
