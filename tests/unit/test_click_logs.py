"""The made-up click logs: their click model is the oracle, newcomers stay out of training, and a seed makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.click_logs import Logs, World, example, make_logs, make_world, write_logs
from training.dataset.example import load_info, read_examples
from training.metrics import auc


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(200, 60, seed=5)


@pytest.fixture(scope="module")
def logs(world: World) -> Logs:
    return make_logs(world, 3000, seed=5)


def test_clicks_come_as_often_as_the_oracle_says(logs: Logs) -> None:
    for rows in (logs.ranks == 1, logs.ranks == 10, logs.part == 2):
        expected = logs.oracle[rows] * logs.examined[rows]
        noise = np.sqrt((expected * (1 - expected)).sum())
        assert abs(logs.clicked[rows].sum() - expected.sum()) < 4 * noise


def test_no_one_ranks_better_than_the_oracle(world: World, logs: Logs) -> None:
    test = logs.part == 2
    oracle = auc(logs.clicked[test], logs.oracle[test])
    assert oracle > 0.7
    assert oracle > auc(logs.clicked[test], world.quality[logs.shops[test]]) + 0.05


def test_place_and_merit_are_independent_in_the_test_days_only(logs: Logs) -> None:
    def relation(rows: np.ndarray) -> float:
        return float(np.corrcoef(logs.ranks[rows], logs.oracle[rows])[0, 1])

    assert relation(logs.part == 0) < -0.1
    assert abs(relation(logs.part == 2)) < 0.05


def test_newcomers_appear_in_the_test_days_only(world: World, logs: Logs) -> None:
    new = world.late_users[logs.users] | world.late_shops[logs.shops]
    assert not new[logs.part < 2].any()
    assert new[logs.part == 2].any()
    assert (np.diff(logs.at_s) >= 0).all()
    assert all(len(set(request)) == 10 for request in logs.shops.reshape(-1, 10).tolist())


def test_a_seed_makes_the_same_files(world: World, logs: Logs, tmp_path: Path) -> None:
    again = make_world(200, 60, seed=5)
    write_logs(world, logs, tmp_path / "a")
    write_logs(again, make_logs(again, 3000, seed=5), tmp_path / "b")
    for name in ("items.jsonl", "dataset/train.jsonl", "dataset/test.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    info = load_info(tmp_path / "a" / "dataset")
    assert info.fingerprint == "made-up"
    assert sum(info.counts.values()) == len(logs.users)
    first = next(read_examples(tmp_path / "a" / "dataset" / "train.jsonl"))
    assert first == example(world, logs, 0)


def test_a_click_far_down_weighs_more_in_training_and_not_in_the_test(world: World, logs: Logs) -> None:
    for part, weight in ((0, 10**0.5), (2, 1.0)):
        row = int(np.flatnonzero(logs.clicked & (logs.ranks == 10) & (logs.part == part))[0])
        assert example(world, logs, row).weight == pytest.approx(weight)
