"""A rollout at the HTTP endpoint: whatever an arm does, users get an answer, and the evidence says what it did."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from registry.memory_store import MemoryStore
from registry.rollout.state import AppState
from registry.traffic import TOKEN_CHARS, Traffic
from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PhaseFailed,
    ReplicaLost,
    StoreUnavailable,
)
from serving.keys import SCOPES
from serving.trace import Origin, verify
from tests.endpoint import Setup, bare_release, made_up_spec, serve
from tests.loads import Loads
from tests.trial import USERS, Trial, split
from tests.waiting import wait_for


def test_each_user_has_one_release_and_the_evidence_counts_every_request(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 30.0))
    arms = split(traffic, USERS)
    assert arms["stable"]
    for _ in range(2):
        assert trial.answers(USERS) == {user: "2" if user in arms["canary"] else "1" for user in USERS}
    for arm in ("canary", "control"):
        assert trial.outcomes(arm, 2 * len(arms[arm])) == "a" * (2 * len(arms[arm]))
    for evidence in trial.desk.recorded("teas"):
        assert evidence.router == trial.endpoint.services.router.id
        assert evidence.block.agreed == ""
        assert len(evidence.block.tokens) == TOKEN_CHARS * len(evidence.block.outcomes)


def test_sessions_stay_too_and_requests_of_nobody_spread(trial: Trial) -> None:
    trial.steer(trial.desk.trial("teas", 50.0))
    with trial.endpoint.client() as client:
        for session in USERS[:10]:
            replies = [client.post("/v1/apps/teas/query", json={"query": "tea", "session": session}) for _ in range(3)]
            assert len({trial.whole(reply) for reply in replies}) == 1
        replies = [client.post("/v1/apps/teas/query", json={"query": "tea"}) for _ in range(64)]
    assert {trial.whole(reply) for reply in replies} == {"1", "2"}


FAULTS = [
    (RuntimeError("a bug"), "e"),
    (PhaseFailed("retrieve broke", phase="retrieve"), "e"),
    (StoreUnavailable("its files are gone"), "e"),
    (BadRequest("says that a good request is bad", field="query"), "e"),
    (NotFound("says that there is no such thing"), "e"),
    (Overloaded("full", retry_after_s=1), "o"),
    (DeadlineExceeded("too slow"), "t"),
    (ReplicaLost("killed"), "c"),
]


@pytest.mark.parametrize(("fault", "letter"), FAULTS, ids=[type(fault).__name__ for fault, _ in FAULTS])
@pytest.mark.parametrize("arm", ["canary", "control"])
def test_an_arm_that_fails_every_request_costs_no_user_anything(
    trial: Trial, fault: Exception, letter: str, arm: str
) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    arms = split(traffic, USERS)
    reason = {"e": "raised", "o": "overloaded", "t": "timed_out", "c": "lost"}[letter]
    replayed = f'palate_replayed_requests_total{{app="teas",arm="{arm}",reason="{reason}"}}'
    before = trial.metric(replayed)
    trial.loads.faults[arm] = fault
    good = "2" if arm == "control" else "1"
    answers = trial.answers(USERS)
    assert {user: release for user, release in answers.items() if user in arms[arm]} == dict.fromkeys(arms[arm], "1")
    assert set(answers.values()) == {"1", good}
    assert trial.outcomes(arm, len(arms[arm])) == letter * len(arms[arm])
    other = "control" if arm == "canary" else "canary"
    assert trial.outcomes(other, len(arms[other])) == "a" * len(arms[other])
    if letter == "c":
        # Only one user's request was sent into the void; the others are counted, and went straight to stable
        assert trial.loads.answered(arm, "tea") == 1
    assert trial.metric(replayed) - before == len(arms[arm])


def test_a_hanging_canary_is_answered_for_within_the_deadline(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0, answer_within_ratio=0.1))
    canary = split(traffic, USERS)["canary"][:3]
    trial.loads.hangs.add("canary")
    headers = {"x-request-timeout-ms": "5000"}
    assert trial.answers(canary, **headers) == dict.fromkeys(canary, "1")
    assert trial.outcomes("canary", 3) == "ttt"
    latencies = [ms for e in trial.desk.recorded("teas") if e.arm == "canary" for ms in e.block.latencies_ms]
    assert all(ms > 100 for ms in latencies)  # a tenth of 5 s, less what came before


def test_what_the_caller_did_wrong_is_not_held_against_an_arm(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    user = split(traffic, USERS)["canary"][0]
    bad = BadRequest("no such attribute", field="filters")
    trial.loads.faults.update({"canary": bad, 1: bad})
    reply = trial.ask(user)
    assert (reply.status_code, reply.json()["field"]) == (400, "filters")
    del trial.loads.faults[1], trial.loads.faults["canary"]
    assert trial.ask(user, text=" ").status_code == 400
    assert trial.ask(user).status_code == 200
    assert trial.outcomes("canary", 1) == "a"


def test_when_stable_fails_too_its_error_is_shown_and_the_arm_counted(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    user = split(traffic, USERS)["canary"][0]
    trial.loads.faults.update({"canary": ReplicaLost("killed"), 1: Overloaded("full", retry_after_s=2)})
    reply = trial.ask(user)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")
    assert trial.outcomes("canary", 1) == "c"


def test_abstained_and_empty_answers_are_told_apart(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    arms = split(traffic, USERS)
    trial.loads.abstains.add("canary")
    trial.loads.finds_nothing.add("control")
    trial.answers([arms["canary"][0], arms["control"][0]])
    assert (trial.outcomes("canary", 1), trial.outcomes("control", 1)) == ("n", "z")


def test_feedback_on_an_arms_answer_knows_the_arm(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0, rollout=7))
    arms = split(traffic, USERS)
    wanted = {arms["canary"][0]: Origin("2", 7, "canary"), arms["control"][0]: Origin("1", 7, "control")}
    services = trial.endpoint.services
    for user, origin in wanted.items():
        trace_id = trial.ask(user).json()["trace_id"]
        assert verify(services.trace_secret, "teas", trace_id) == origin
        with trial.endpoint.client() as client:
            event = {"trace_id": trace_id, "event": "select", "item_id": origin.release, "event_id": user}
            reply = client.post("/v1/apps/teas/feedback", json=event)
        assert reply.status_code == 200, reply.text
        assert reply.json()["release"] == origin.release
        services.traces.flush()
        trace = services.feedback_store.trace(trace_id)
        assert trace is not None
        assert (trace.release, trace.rollout, trace.arm, trace.status) == (*origin, "ok")
        [stored] = [e for _, e in services.feedback_store.events("teas", 0, 10) if e.event_id == user]
        assert (stored.release, stored.rollout, stored.arm) == origin
    trial.loads.faults["canary"] = RuntimeError("a bug")
    trace_id = trial.ask(arms["canary"][0]).json()["trace_id"]
    services.traces.flush()
    trace = services.feedback_store.trace(trace_id)
    assert trace is not None
    assert (trace.release, trace.rollout, trace.arm, trace.status) == ("1", 0, "", "replayed")


def test_every_answer_of_one_request_comes_from_one_arm(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    user = split(traffic, USERS)["canary"][0]
    with trial.endpoint.client() as client:
        reply = client.post("/v1/apps/teas/query", json={"queries": ["tea", "cup", "pot"], "user": user}).json()
    assert [answer["release"] for answer in (reply, *reply["answers"])] == ["2"] * 4
    secret = trial.endpoint.services.trace_secret
    assert {verify(secret, "teas", answer["trace_id"]) for answer in reply["answers"]} == {Origin("2", 1, "canary")}
    assert trial.outcomes("canary", 1) == "a"  # one request, one entry
    token = reply["trace_id"].split("-")[0]
    assert trial.desk.recorded("teas")[0].block.tokens == token[-TOKEN_CHARS:]


def test_shadow_traffic_is_compared_and_never_returned(trial: Trial) -> None:
    trial.steer(trial.desk.trial("teas", 0.0, shadow_percent=100.0))
    assert set(trial.answers(USERS[:5]).values()) == {"1"}
    assert trial.outcomes("shadow", 5) == "a" * 5
    trial.loads.says["canary"] = "1"
    trial.ask("one more")
    trial.outcomes("shadow", 6)
    trial.loads.faults["canary"] = RuntimeError("a bug")
    trial.ask("and another")
    assert trial.outcomes("shadow", 7) == "aaaaaae"
    agreed = "".join(e.block.agreed for e in trial.desk.recorded("teas"))
    assert agreed == "0000010"
    assert {e.arm for e in trial.desk.recorded("teas")} == {"shadow"}


def test_shadow_traffic_is_bounded_and_slows_no_answer(trial: Trial) -> None:
    trial.steer(trial.desk.trial("teas", 0.0, shadow_percent=100.0))
    trial.loads.gate.clear()
    trial.loads.slow_to_answer.add("canary")
    assert set(trial.answers(USERS[:20]).values()) == {"1"}
    trial.loads.gate.set()
    assert trial.outcomes("shadow", 8) == "a" * 8
    trial.ask("one more")
    assert trial.outcomes("shadow", 9) == "a" * 9


def test_a_share_of_shadow_traffic_is_a_share_of_the_requests(trial: Trial) -> None:
    trial.steer(trial.desk.trial("teas", 0.0, shadow_percent=50.0))
    for _ in range(40):
        trial.answers(["client-01025"])
    counted = len(trial.outcomes("shadow", 1))
    assert 4 < counted < 36  # of one user's 40; 20 expected, 5 standard deviations of 3.2


def test_a_key_that_may_names_its_release(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0, warm=(3,)))
    user = split(traffic, USERS)["control"][0]
    for pin, release in (("stable", "1"), ("canary", "2"), ("control", "1"), ("1", "1"), ("2", "2"), ("3", "3")):
        reply = trial.ask(user, **{"X-Palate-Release": pin})
        assert trial.whole(reply) == release
        # A plain id: what a tester does says nothing about users
        assert verify(trial.endpoint.services.trace_secret, "teas", reply.json()["trace_id"]) == Origin(release)
    reply = trial.ask(user, **{"X-Palate-Release": "9"})
    assert (reply.status_code, reply.json()["field"]) == (404, "x-palate-release")
    assert "canary (2)" in reply.json()["detail"]
    trial.loads.faults["canary"] = RuntimeError("a bug")
    reply = trial.ask(user, **{"X-Palate-Release": "canary"})
    assert (reply.status_code, "a bug" in reply.json()["detail"]) == (500, True)
    trial.loads.faults["canary"] = ReplicaLost("killed")
    assert trial.ask(user, **{"X-Palate-Release": "canary"}).status_code == 503
    trial.ask(user)
    assert trial.outcomes("control", 1) == "a"
    assert trial.desk.outcomes("teas", "canary") == ""


def test_other_keys_may_not_pin(trial: Trial) -> None:
    trial.steer(trial.desk.trial("teas", 50.0))
    _, key = trial.endpoint.new_key(SCOPES - {"pin"})
    reply = trial.ask("somebody", key=key, **{"X-Palate-Release": "canary"})
    assert (reply.status_code, reply.json()["field"]) == (403, "x-palate-release")
    assert trial.ask("somebody", key=key).status_code == 200
    with trial.endpoint.client(key, **{"X-Palate-Release": "stable"}) as client:
        assert client.post("/v1/embeddings", json={"model": "teas", "input": "tea"}).status_code == 403


def test_a_database_that_is_away_costs_neither_answers_nor_evidence(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    arms = split(traffic, USERS)
    trial.desk.tables.away = True
    answers = trial.answers(USERS)
    assert {user for user, release in answers.items() if release == "2"} == set(arms["canary"])
    trial.desk.tables.away = False
    assert trial.outcomes("canary", len(arms["canary"])) == "a" * len(arms["canary"])
    assert trial.outcomes("control", len(arms["control"])) == "a" * len(arms["control"])


def test_a_whole_rollout_under_load_fails_no_request(trial: Trial) -> None:
    """To promoted, through the bake and back again, while users ask all the time."""
    done = threading.Event()
    trial.desk.steer("teas", 1)

    def ask_on(worker: int) -> list[tuple[int, str]]:
        seen = []
        with trial.endpoint.client() as client:
            while not done.is_set():
                body: dict[str, Any] = {"query": "tea", "user": f"user-{worker}-{len(seen) % 20}"}
                reply = client.post("/v1/apps/teas/query", json=body)
                seen.append((reply.status_code, trial.whole(reply) if reply.status_code == 200 else reply.text))
        return seen

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(ask_on, worker) for worker in range(4)]
        try:
            for percent in (0.0, 5.0, 50.0):
                trial.steer(trial.desk.trial("teas", percent))
            trial.steer(trial.desk.trial("teas", 5.0, stable=2, warm=(1,)))
            trial.steer(trial.desk.steer("teas", 2))
            trial.steer(trial.desk.steer("teas", 3))
            trial.steer(trial.desk.trial("teas", 50.0, stable=3, canary=1, control=3, rollout=2))
            trial.steer(trial.desk.steer("teas", 3))
        finally:
            done.set()
        answers = [answer for worker in workers for answer in worker.result()]
    assert {status for status, _ in answers} == {200}
    assert {release for _, release in answers} == {"1", "2", "3"}
    failures = {"e", "t", "o", "c"}
    for rollout in (1, 2):
        for arm in ("canary", "control"):
            assert not failures & set(trial.desk.outcomes("teas", arm, rollout))


def test_what_is_under_way_when_the_arms_go_is_finished(trial: Trial) -> None:
    traffic = trial.steer(trial.desk.trial("teas", 50.0))
    user = split(traffic, USERS)["canary"][0]
    trial.loads.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(trial.ask, user, "slow")
        wait_for(lambda: trial.loads.answered("canary", "slow") == 1)
        trial.steer(trial.desk.steer("teas", 1))
        assert trial.answers([user]) == {user: "1"}
        trial.loads.gate.set()
        assert trial.whole(slow.result()) == "2"
    assert trial.outcomes("canary", 1) == "a"
    wait_for(lambda: "canary" in trial.loads.closed)


def test_the_same_over_the_real_database(tmp_path: Path) -> None:
    releases, loads = MemoryStore(), Loads()
    for mark in ("first", "second"):
        bare_release(releases, made_up_spec("teas"), mark)
    releases.set_alias("teas", "stable", 1)
    named = [releases.get("teas", version) for version in (1, 2)]
    with serve(tmp_path, releases, ["teas"], Setup(loads=loads)) as endpoint:
        stores, router = endpoint.stores, endpoint.services.router
        assert stores.journal.take_lease("test", 600.0)
        traffic = Traffic("teas", 1, 1, canary=2, control=1, canary_percent=50.0, control_percent=50.0, rollout=1)
        stores.journal.record("test", AppState("teas"), traffic, [], named)
        wait_for(lambda: any(report.generation == 1 for report in stores.board.routers("teas", 0.0)))
        loads.faults["canary"] = RuntimeError("a bug")
        with endpoint.client() as client:
            for user in USERS[:20]:
                reply = client.post("/v1/apps/teas/query", json={"query": "tea", "user": user})
                assert (reply.status_code, reply.json()["release"]) == (200, "1")
        wait_for(lambda: sum(len(e.block.outcomes) for e in stores.evidence.after("teas", 1, {}, 1000)) == 20)
        recorded = stores.evidence.after("teas", 1, {}, 1000)
        assert {e.router for e in recorded} == {router.id}
        assert {(e.arm, letter) for e in recorded for letter in e.block.outcomes} == {("canary", "e"), ("control", "a")}
        stores.journal.record("test", AppState("teas"), Traffic("teas", 2, 2), [])
        wait_for(lambda: endpoint.release("teas") == "2")


def test_the_list_of_apps_and_the_metrics_tell_of_the_rollout(trial: Trial) -> None:
    def listed() -> dict[str, Any]:
        with trial.endpoint.client() as client:
            return dict(client.get("/v1/apps").json()["apps"][0])

    assert "rollout" not in listed()
    trial.steer(trial.desk.trial("teas", 25.0, rollout=4))
    assert listed()["rollout"] == {"number": 4, "canary": "2", "percent": 25.0}
    assert trial.metric('palate_traffic_percent{app="teas",arm="canary",release="2"}') == 25
    assert trial.metric('palate_traffic_percent{app="teas",arm="stable",release="1"}') == 50
    trial.steer(trial.desk.steer("teas", 1))
    assert trial.metric('palate_traffic_percent{app="teas",arm="canary",release="2"}') == 0
    assert trial.metric('palate_traffic_percent{app="teas",arm="stable",release="1"}') == 100
    assert "rollout" not in listed()
