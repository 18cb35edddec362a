"""The split: which arm a key belongs to, in exact shares."""

from __future__ import annotations

from collections import Counter

import pytest

from registry.traffic import Traffic
from serving.split import BUCKETS, arm_of, bucket, choose


def traffic(canary: float, control: float, rollout: int = 1) -> Traffic:
    return Traffic("teas", 1, 1, canary=2, control=1, canary_percent=canary, control_percent=control, rollout=rollout)


@pytest.mark.parametrize(
    ("canary", "control"), [(0, 0), (0.01, 0.01), (1, 1), (5, 5), (12.34, 7.65), (50, 50), (29, 0.29), (0, 33.33)]
)
def test_shares_are_exact_over_all_buckets(canary: float, control: float) -> None:
    counted = Counter(arm_of(number, traffic(canary, control)) for number in range(BUCKETS))
    assert counted["canary"] == round(canary * 100)
    assert counted["control"] == round(control * 100)
    assert sum(counted.values()) == BUCKETS


def test_the_canary_has_the_lowest_buckets_and_the_control_the_highest() -> None:
    arms = [arm_of(number, traffic(5, 3)) for number in range(BUCKETS)]
    assert arms == ["canary"] * 500 + ["stable"] * 9_200 + ["control"] * 300


def test_users_spread_evenly() -> None:
    """Pearson's chi-square over 100 cells of 1,000 expected: its 99.9999 percentile at 99 degrees is about 180."""
    cells = Counter(bucket("teas", 1, f"user-{n}") // 100 for n in range(100_000))
    assert len(cells) == 100
    assert sum((count - 1000) ** 2 / 1000 for count in cells.values()) < 180


def test_another_rollout_or_app_draws_anew() -> None:
    """Of the users in the lowest tenth of one, a tenth is in the lowest tenth of the other: no user is always first."""
    users = [f"user-{n}" for n in range(20_000)]
    first = {user for user in users if bucket("teas", 1, user) < 1000}
    for app, rollout in (("teas", 2), ("cups", 1), ("teas", 11)):
        again = {user for user in first if bucket(app, rollout, user) < 1000}
        assert 100 < len(again) < 320  # 200 expected; 8 standard deviations of 13.4


def test_the_split_never_changes_between_versions_of_palate() -> None:
    """Replicas of two versions serve side by side while a platform is upgraded: they must agree."""
    assert [bucket("teas", 1, key) for key in ("client-01025", "가나다", "")] == [8027, 8075, 2491]
    assert bucket("teas", 1, "\ud800") in range(BUCKETS)  # half a character, as a JSON text may hold it


def test_a_key_stays_where_it_is() -> None:
    assert {choose(traffic(30, 30), "client-01025") for _ in range(10)} == {choose(traffic(30, 30), "client-01025")}
