"""Which arm of a rollout answers a request: a pure, sticky split of 10,000 buckets.

The router asks it for each request of an app that has a rollout. The canary has the lowest buckets and the control the
highest, so raising a weight takes users from stable only and never moves anybody between the arms or back.
"""

from __future__ import annotations

from hashlib import blake2b

from registry.traffic import Arm, Traffic

BUCKETS = 10_000


def bucket(app: str, rollout: int, key: str) -> int:
    """0..BUCKETS-1, uniform over keys, the same in every process, independent between apps and between rollouts."""
    # No "/" in an app's name or a number, so no two inputs give the same text. 64 bits: the remainder of the division
    # favours no bucket by more than 1 in 10^15.
    text = f"{app}/{rollout}/{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest()) % BUCKETS


def arm_of(number: int, traffic: Traffic) -> Arm:
    """The arm that has this bucket."""
    if number < buckets_of(traffic.canary_percent):
        return "canary"
    if number >= BUCKETS - buckets_of(traffic.control_percent):
        return "control"
    return "stable"


def choose(traffic: Traffic, key: str) -> Arm:
    """The arm for a user, else a session, else a request."""
    return arm_of(bucket(traffic.app, traffic.rollout, key), traffic)


def buckets_of(percent: float) -> int:
    """How many buckets a weight is worth: exact to 0.01 percent."""
    return round(percent * 100)
