"""Whatever the weights: exact, disjoint, and nobody moves back when a weight rises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.traffic import Traffic
from serving.split import BUCKETS, arm_of, bucket, choose

hundredths = st.integers(0, 5_000)
keys = st.text(max_size=40)


def traffic(canary: int, control: int, rollout: int = 1) -> Traffic:
    """Weights in hundredths of a percent."""
    percents = {"canary_percent": canary / 100, "control_percent": control / 100}
    return Traffic("teas", 1, 1, canary=2, control=1, rollout=rollout, **percents)


@given(hundredths, hundredths)
def test_every_bucket_has_one_arm_and_every_arm_its_share(canary: int, control: int) -> None:
    arms = [arm_of(number, traffic(canary, control)) for number in range(BUCKETS)]
    assert (arms.count("canary"), arms.count("control")) == (canary, control)
    assert arms.count("stable") == BUCKETS - canary - control


@given(st.tuples(hundredths, hundredths), st.tuples(hundredths, hundredths), st.lists(keys, max_size=50))
def test_rising_weights_take_users_from_stable_only(
    some: tuple[int, int], others: tuple[int, int], users: list[str]
) -> None:
    low = traffic(min(some[0], others[0]), min(some[1], others[1]))
    high = traffic(max(some[0], others[0]), max(some[1], others[1]))
    for user in users:
        before, after = choose(low, user), choose(high, user)
        assert after == before or before == "stable"


@given(keys, st.integers(1, 10**6))
def test_a_bucket_is_a_bucket(key: str, rollout: int) -> None:
    number = bucket("teas", rollout, key)
    assert 0 <= number < BUCKETS
    assert number == bucket("teas", rollout, key)
