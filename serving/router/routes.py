"""What one app does with its requests at one moment: values that are replaced as a whole, so that no request ever sees
half of a change. `serving.router.app` makes them, `serving.arms` acts on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from registry.traffic import Arm, Traffic, TrialArm
from serving.router.release import ServedRelease
from serving.split import bucket, buckets_of, choose


class Key(NamedTuple):
    """Something this process holds: a version loaded here (`arm` None), or the connection to an arm of a rollout."""

    version: int
    arm: TrialArm | None = None
    rollout: int = 0

    def __str__(self) -> str:
        return f"release {self.version}" if self.arm is None else f"the {self.arm} arm (release {self.version})"


class Route(NamedTuple):
    """Where one request goes. `served` is the release of its arm (stable's for `stable`). `lost`: the arm's replica is
    gone, so stable answers at once. `mirror`: a canary to which the request is mirrored once stable has answered."""

    served: ServedRelease
    arm: Arm = "stable"
    traffic: Traffic | None = None
    lost: bool = False
    mirror: ServedRelease | None = None


@dataclass(frozen=True, slots=True)
class Routes:
    """`traffic` holds the weights in effect; None: stable gets everything. `arms` are those connected."""

    stable: ServedRelease
    traffic: Traffic | None = None
    arms: Mapping[TrialArm, ServedRelease] = field(default_factory=dict)
    lost: frozenset[TrialArm] = frozenset()

    def route(self, who: str | None, token: str) -> Route:
        """The route of a request: `who` is its user or session, None where it names neither; `token` its own id."""
        traffic = self.traffic
        if traffic is None or not self.arms:
            return Route(self.stable)
        arm = choose(traffic, token if who is None else who)
        if arm != "stable":
            served = self.arms.get(arm)
            return Route(self.stable) if served is None else Route(served, arm, traffic, arm in self.lost)
        return Route(self.stable, "stable", traffic, mirror=self._mirror(traffic, token))

    def _mirror(self, traffic: Traffic, token: str) -> ServedRelease | None:
        if not traffic.shadow_percent or "canary" in self.lost:
            return None
        # By request and not by user: what is compared should be the traffic as it is.
        drawn = bucket(traffic.app, traffic.rollout, f"shadow/{token}")
        return self.arms.get("canary") if drawn < buckets_of(traffic.shadow_percent) else None

    def weights(self) -> dict[tuple[str, Arm], float]:
        """(release, arm) -> percent of the requests that go there."""
        traffic = self.traffic
        percents: dict[TrialArm, float] = {}
        if traffic is not None:
            percents = {"canary": traffic.canary_percent, "control": traffic.control_percent}
        shares: dict[tuple[str, Arm], float] = {}
        for arm, served in self.arms.items():
            shares[served.version, arm] = percents.get(arm, 0.0)
        shares[self.stable.version, "stable"] = 100.0 - sum(shares.values())
        return shares


def arms_of(traffic: Traffic) -> Iterator[Key]:
    """The arms a router is to be connected to."""
    if traffic.canary is not None:
        yield Key(traffic.canary, "canary", traffic.rollout)
    if traffic.control is not None:
        yield Key(traffic.control, "control", traffic.rollout)


def wanted(traffic: Traffic) -> Iterator[Key]:
    """All that a router is to hold, most urgent first."""
    yield Key(traffic.stable)
    yield from arms_of(traffic)
    for version in traffic.warm:
        if version != traffic.stable:
            yield Key(version)


def without_arms_but(traffic: Traffic, keep: frozenset[Key]) -> Traffic:
    """The same weights, but nothing for arms that are not in `keep`."""
    for key in arms_of(traffic):
        if key in keep:
            continue
        if key.arm == "canary":
            traffic = replace(traffic, canary=None, canary_percent=0.0, shadow_percent=0.0)
        else:
            traffic = replace(traffic, control=None, control_percent=0.0)
    return traffic
