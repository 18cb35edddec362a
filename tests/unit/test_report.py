"""The report of a rollout: right numbers, one self-contained page, nothing of people's taken for markup."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from registry.analysis import Verdict
from registry.fakes import MemoryEvidence
from registry.report import LiveCounts, make_history, read_evidence
from registry.report.history import Judge, shares
from registry.report.svg import Plot, ticks
from registry.traffic import Block, Entry, Evidence
from tests.rollout_sample import (
    APP,
    BASE,
    BROKEN_S,
    LAST_S,
    ROLLED_BACK_S,
    ROLLOUT,
    START_S,
    analysis,
    entries,
    entry,
    evidence,
    report,
)

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects them and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_the_numbers_are_those_of_the_evidence() -> None:
    history = make_history(entries(), evidence(), analysis)
    canary = [e.block for e in evidence() if e.arm == "canary"]
    assert history.tally("canary").requests == sum(len(b.outcomes) for b in canary)
    assert history.tally("canary").failed == sum(b.outcomes.count("e") for b in canary) > 0
    assert history.first_failure_s == START_S + BROKEN_S
    assert history.time_to_zero_s == pytest.approx(LAST_S - BROKEN_S)
    assert history.decision_to_zero_s == pytest.approx(LAST_S - ROLLED_BACK_S)


def test_what_was_not_taken_away_has_no_time_to_zero() -> None:
    history = make_history(entries()[:-1], evidence(), analysis)
    assert (history.time_to_zero_s, history.decision_to_zero_s) == (None, None)


def test_bands_end_where_the_decision_was_made() -> None:
    history = make_history(entries(), evidence(), analysis)
    assert 60 <= len(history.points) <= 70
    at_decision = next(p.verdict for p in history.points if p.at_s == START_S + ROLLED_BACK_S)
    assert at_decision.state == "Fail"
    error = dict(history.guards())["error"]
    assert [at for at, _ in error] == sorted(at for at, _ in error)
    low, high = error[-1][1].canary_low, error[-1][1].canary_high
    assert low is not None
    assert high is not None
    first_low, first_high = error[0][1].canary_low, error[0][1].canary_high
    assert first_low is not None
    assert first_high is not None
    assert high - low < first_high - first_low


def test_the_bake_is_judged_anew() -> None:
    made: list[Judge] = []

    class Counting:
        def __init__(self) -> None:
            self.requests = 0
            made.append(self)

        def add(self, arm: str, latencies_ms: Any, outcomes: str) -> None:
            self.requests += len(outcomes)

        def verdict(self) -> Verdict:
            return Verdict("Pass", "counted", (), self.requests)

    told = [*entries()[:-1], entry(250.0, "promoted", "every step passed")]
    make_history(told, evidence(), Counting)
    counted = [judge.requests for judge in made if isinstance(judge, Counting)]
    total = sum(len(e.block.outcomes) for e in evidence())
    before = sum(len(e.block.outcomes) for e in evidence() if e.block.at_s <= START_S + 250.0)
    assert counted == [before, total - before]


def test_a_guard_without_evidence_has_what_the_journal_says() -> None:
    guard = {"name": "reward", "state": "Fail", "sentence": "earns less", "canary": 0.1, "control": 0.2}
    verdict = {"state": "Fail", "sentence": "earns less", "guards": [guard]}
    told = [*entries()[:-1], entry(ROLLED_BACK_S, "rolled-back", "earns less", verdict=verdict)]
    [(at, result)] = make_history(told, evidence(), analysis).guards()["reward"]
    assert (at, result.canary, result.control) == (START_S + ROLLED_BACK_S, 0.1, 0.2)
    assert "reward: Fail" in report(told)


def test_weights_follow_the_steps_to_the_end() -> None:
    history = make_history(entries(), evidence(), analysis)
    assert [new for _, new, _ in shares(history)] == [0, 1, 5, 25, 0, 0]
    promoted = [*entries()[:-1], entry(400, "promoted", "x"), entry(500, "baked", "x")]
    assert [new for _, new, _ in shares(make_history(promoted, evidence(), analysis))] == [0, 1, 5, 25, 100, 100, 100]


def test_the_page_stands_alone_and_is_accessible() -> None:
    html = report()
    page = Page(html)
    assert "http" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object"}
    assert not re.search(r"url\((?!#clip-)|@import|\son\w+=", html)
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(plots) == 3 + 6  # weights, failures, the last minute; a guard each
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == len(plots)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(svg)
    assert "nan" not in re.findall(r'points="([^"]*)"', html)


def test_the_page_says_what_a_review_needs() -> None:
    text = re.sub(r"\s+", " ", Page(report()).text)
    for words in (
        "version 7 was rolled back after 5 min 32 s",
        "Compared with version 6",
        "Time to zero 2.75 s",
        "Decision to zero 0.35 s",
        "stable answered in the place of an arm",
        "First bad answer 11:12:10",
        "error: Fail",
        "step to 25 percent",
    ):
        assert words in text, words


def test_what_people_write_stays_text() -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=y>'
    told = [Entry(APP, ROLLOUT, START_S, "started", evil, evil, 7, {"base": BASE}), entry(5, "aborted", evil, evil)]
    verdict = {"state": "Fail", "sentence": evil, "guards": [{"name": evil, "state": "Fail", "sentence": evil,
               "canary": 0.5, "control": 0.1}]}  # fmt: skip
    told.append(entry(6, "note", evil, evil, verdict=verdict))
    page = Page(report(told))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.text.count("<script>alert(1)</script>") >= 4


@pytest.mark.parametrize("told", [entries()[:1], entries()[:2], entries()], ids=["started", "ready", "all"])
def test_a_rollout_without_evidence_has_a_report(told: tuple[Entry, ...]) -> None:
    text = Page(report(told, [])).text
    assert "No request reached an arm" in text or "error" in text


def test_one_block_is_enough() -> None:
    Page(report(None, evidence()[:1]))
    Page(report(entries()[:1], [Evidence(APP, ROLLOUT, "a", 1, "shadow", Block(START_S + 1, (5.0,), "a", "", "1"))]))


def test_many_thousand_blocks() -> None:
    """Ten hours of one router, within seconds."""
    blocks = [
        Evidence(APP, ROLLOUT, "a", n, "control" if n % 2 else "canary", Block(START_S + n / 2, (20.0, 30.0), "aa"))
        for n in range(72_000)
    ]
    began = time.monotonic()
    html = report(entries()[:3], blocks)
    assert time.monotonic() - began < 60
    assert len(html) < 200_000


def test_all_evidence_is_read_whatever_the_pages() -> None:
    store = MemoryEvidence()
    store.add(evidence())
    found = read_evidence(store, APP, ROLLOUT, page=100)
    assert sorted((e.router, e.seq) for e in found) == sorted((e.router, e.seq) for e in evidence())
    assert read_evidence(store, APP, ROLLOUT + 1) == []


def test_live_counts_go_on_from_where_they_were() -> None:
    store = MemoryEvidence()
    live = LiveCounts(store)
    assert live.look(APP, ROLLOUT) == {}
    half = len(evidence()) // 2
    store.add(evidence()[:half])
    some = live.look(APP, ROLLOUT)
    store.add(evidence())
    for arm, tally in live.look(APP, ROLLOUT).items():
        outcomes = "".join(e.block.outcomes for e in evidence() if e.arm == arm)
        assert (tally.requests, tally.failed) == (len(outcomes), outcomes.count("e"))
        assert tally.requests > some[arm].requests
    store.add([replace(evidence()[0], rollout=ROLLOUT + 1)])
    assert live.look(APP, ROLLOUT + 1)["canary"].requests == len(evidence()[0].block.outcomes)


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [(0, 1, 4, [0, 0.5, 1]), (0, 0.023, 4, [0, 0.01, 0.02]), (-0.3, 1.1, 4, [0, 0.5, 1]), (0, 60, 3, [0, 20, 40, 60])],
)
def test_ticks_are_round(low: float, high: float, about: int, expected: list[float]) -> None:
    assert ticks(low, high, about) == expected


def test_a_value_far_outside_a_plot_does_not_spoil_it() -> None:
    plot = Plot("p", "label", (0, 1), (0, 1), str)
    plot.line([(0, 1e300), (1, float("inf"))], "canary")
    assert "inf" not in plot.svg()
    assert "e+" not in plot.svg()
