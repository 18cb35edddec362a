"""What a ranker shows of itself: AUC within each user of the test part, and the gate that asks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from serving.schema import GateSpec
from tests import wide_deep
from training.dataset.example import Example, write_examples
from training.evidence import Compared, Scored, by_user
from training.gates import judge
from training.ports import ShowsEvidence, Task
from training.wide_deep.trainer import TRAINER


def scored(users: list[str], labels: list[int], scores: list[float], weights: list[float] | None = None) -> Scored:
    return Scored(
        np.array(labels, np.float64), np.array(scores), None if weights is None else np.array(weights), key="k"
    )


def all_of(cases: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(cases), np.ones((1, cases), np.int64)


def test_auc_is_that_within_users() -> None:
    # Between users the order is perfect, within each of them it is the wrong way round.
    users, labels, scores = ["a", "a", "b", "b"], [1, 0, 1, 0], [0.8, 0.9, 0.1, 0.2]
    found = by_user(users, scored(users, labels, scores))
    assert found.cases == 2
    assert found.figure("auc", *all_of(2)).tolist() == [0.0]


def test_users_count_by_the_weight_of_their_cases_and_draws_repeat_them() -> None:
    rng = np.random.default_rng(5)
    users = [f"u{n % 7}" for n in range(210)]
    labels = rng.integers(0, 2, 210).tolist()
    scores, weights = rng.random(210).tolist(), rng.uniform(0.5, 2, 210).tolist()
    found = by_user(users, scored(users, labels, scores, weights))
    own, mass = [], []
    for user in sorted(set(users)):
        rows = [n for n, one in enumerate(users) if one == user]
        y, s, w = (np.array(values)[rows] for values in (labels, scores, weights))
        own.append(roc_auc_score(y, s, sample_weight=w))
        mass.append(w.sum())
    draws = np.array([[1, 1, 1, 1, 1, 1, 1], [3, 0, 0, 2, 0, 1, 1]])
    wanted = [np.average(own, weights=np.array(mass) * draw) for draw in draws]
    np.testing.assert_allclose(found.figure("auc", np.arange(7), draws), wanted)


def test_who_cannot_be_judged_is_left_out() -> None:
    users = ["always", "always", "never", "", "", "both", "both"]
    found = by_user(users, scored(users, [1, 1, 0, 1, 0, 1, 0], [0.5] * 7))
    assert found.cases == 1
    assert found.scored.cases == 2
    nobody = by_user([], scored([], [], []))
    assert nobody.cases == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path, Path]:
    """(the task, a ranker that learnt tastes, one that learnt noise), with a test part of the same tastes."""
    root = tmp_path_factory.mktemp("rankers")
    noise = [Example("", one.item, n % 2, at_s=n, user=one.user) for n, one in enumerate(wide_deep.taste(1000, 3))]
    good = wide_deep.task_in(root / "good", wide_deep.taste(1500, 1), wide_deep.taste(100, 2))
    bad = wide_deep.task_in(root / "bad", noise, noise[:100])
    folders = [wide_deep.train(task).components[0].folder for task in (good, bad)]
    write_examples(good.dataset / "test.jsonl", wide_deep.taste(600, 9))
    return good, folders[0], folders[1]


def test_the_better_ranker_passes_the_gate_and_the_worse_does_not(trained: tuple[Task, Path, Path]) -> None:
    task, good, bad = trained
    assert isinstance(TRAINER, ShowsEvidence)
    better, worse = TRAINER.evidence(task, good), TRAINER.evidence(task, bad)
    assert better is not None
    assert worse is not None
    assert better.figure("auc", *all_of(better.cases))[0] > 0.8
    gates = {"feedback": GateSpec(metric="auc", require="better", margin=0.02, slice_margin=None)}
    assert judge(gates, {"feedback": Compared(better, worse)}, 0).passed
    assert not judge(gates, {"feedback": Compared(worse, better)}, 0).passed
    assert not judge(gates, {"feedback": Compared(better, better)}, 0).passed  # the same is not better


def test_without_a_ranker_or_a_test_part_there_is_nothing_to_show(
    trained: tuple[Task, Path, Path], tmp_path: Path
) -> None:
    task, good, _ = trained
    assert TRAINER.evidence(task, None) is None
    empty = wide_deep.task_in(tmp_path, [])
    write_examples(tmp_path / "test.jsonl", [])
    assert TRAINER.evidence(empty, good) is None
