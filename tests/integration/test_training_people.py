"""People and training runs: who is forgotten meanwhile is in no release, and what is left out starts no run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from registry.errors import RegistryUnavailable
from serving.schema import FeedbackEvent
from serving.store import SqlFeedbackStore
from tests.learning import APP, Classroom, learning_spec
from tests.learning import room as room
from training.dataset.example import PEOPLE_FILE
from training.errors import TrainingRefused
from training.run import train
from training.runs import Runs


def test_a_person_who_was_forgotten_meanwhile_is_in_no_release(room: Classroom) -> None:
    """First while the run lies interrupted, then while it evaluates."""
    means, order, gone = room.means(), room.order(learning_spec(canary=True)), set[str]()
    built: list[frozenset[str]] = []

    def dataset(asked: Any, progress: Any) -> Any:
        info = means.dataset(asked, progress)
        built.append(frozenset({"ann", "bob"} - gone))
        (asked.folder / PEOPLE_FILE).write_text("".join(f"{one}\n" for one in sorted(built[-1])))
        return info

    def breaks(*_: Any) -> Any:
        raise RegistryUnavailable("the machine went away")

    def judge(*arguments: Any) -> Any:
        gone.add("bob")
        return means.judge(*arguments)

    means_of = partial(replace, means, dataset=dataset, forgotten=lambda _: gone)
    with pytest.raises(RegistryUnavailable):
        train(order, means_of(fit=breaks))
    gone.add("ann")
    with pytest.raises(TrainingRefused, match="forgotten meanwhile"):
        train(order, means_of(judge=judge))
    assert [version.version for version in room.releases.versions(APP)] == [1]
    assert not list(room.home.rglob(PEOPLE_FILE))
    assert train(order, means_of()).status == "published"
    assert built == [{"ann", "bob"}, {"bob"}, frozenset()]


def test_what_is_left_out_is_no_reason_for_another_run(room: Classroom) -> None:
    """Events that nothing learns from count as heard."""
    told = [FeedbackEvent(f"e{n}", f"t{n}", APP, "1", "order", 5.0, f"u{n}", selected="t0") for n in range(7)]
    SqlFeedbackStore(room.database).record_many(told)
    assert train(room.order(learning_spec()), room.means()).status == "published"
    assert Runs(room.database).of(APP)[0].feedback_seq == 7
