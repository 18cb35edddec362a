"""Where releases live, and where rollouts are steered from. Each port's adapters pass one contract suite.

`ReleaseStore`: `MlflowStore`, `MemoryStore`. `TrafficBoard`, `EvidenceStore`, `Journal`: over the one SQL database in
`registry.journal`, in memory in `registry.fakes`. Every method raises RegistryUnavailable when its store cannot be
reached; nothing is half done then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from registry.analysis.verdict import LiveVerdict
from registry.rollout.state import AppState
from registry.schema import ComponentRef, Release, ReleaseVersion
from registry.traffic import ArmReport, Command, Entry, Evidence, Reward, RouterReport, Traffic


class ReleaseStore(Protocol):
    def publish(self, release: Release, folders: Mapping[str, Path]) -> ReleaseVersion:
        """Register a release. `folders` maps each component's digest to the folder that holds its files.

        A component whose digest is stored already is shared, not copied. Raises ReleaseRefused when a digest does not
        match its folder, or a `needs` does not match the release's own components. Publishing the same release digest
        again returns the version there is.
        """

    def get(self, app: str, version_or_alias: int | str) -> ReleaseVersion:
        """Raises ReleaseNotFound."""

    def versions(self, app: str) -> list[ReleaseVersion]:
        """Newest first; [] for an app that has none."""

    def fetch(self, component: ComponentRef, into: Path) -> Path:
        """The component's files in the folder `into/<digest>`, verified. Raises ReleaseRefused if they were altered."""

    def aliases(self, app: str) -> Mapping[str, int]:
        """Every alias of the app, read at one moment; {} for an app that has none."""

    def set_alias(self, app: str, alias: str, version: int) -> None: ...

    def delete_alias(self, app: str, alias: str) -> None: ...

    def set_tags(self, app: str, version: int, tags: Mapping[str, str]) -> None: ...


class TrafficBoard(Protocol):
    """Desired and seen: the controller writes what shall be, routers and the deployer of arms follow and report."""

    def traffic(self) -> Mapping[str, Traffic]:
        """Of every app a controller has taken on. Read by each router several times a second: one small query."""

    def release(self, app: str, version: int) -> ReleaseVersion:
        """A version named by some traffic, as it was accepted: no MLflow is asked. Raises ReleaseNotFound."""

    def report_router(self, report: RouterReport) -> None:
        """Replaces the router's last report on that app."""

    def report_arm(self, report: ArmReport) -> None:
        """Replaces the arm's last report."""

    def routers(self, app: str, since_s: float) -> list[RouterReport]:
        """The reports not older than `since_s`, Unix time."""

    def arms(self, app: str, rollout: int) -> list[ArmReport]: ...


class EvidenceStore(Protocol):
    def add(self, evidence: Sequence[Evidence]) -> None:
        """Durable when it returns; an (app, rollout, router, seq) that is there already is left as it is."""

    def after(self, app: str, rollout: int, cursor: Mapping[str, int], limit: int) -> list[Evidence]:
        """Of each router the blocks with a `seq` above the cursor's (0 where it names none), in the router's order.
        Fewer than `limit` means that nothing more was there."""

    def purge(self, older_than_s: float) -> int:
        """Delete the evidence of rollouts that ended and whose newest block is older; how many blocks went."""


class RewardSource(Protocol):
    """Feedback on answers of arms; `serving` implements it over the feedback it stored."""

    def start(self, app: str, answered_s: float) -> int:
        """A seq to read on from that misses no feedback on answers given since `answered_s`, Unix time."""

    def rewards(self, app: str, after: int, limit: int) -> tuple[list[Reward], int]:
        """Those with a seq above `after`, oldest first, and the seq to go on from (it passes events of no rollout)."""


class Journal(Protocol):
    """The controller's memory and everybody's record. Only the holder of the lease may write states."""

    def take_lease(self, holder: str, for_s: float) -> bool:
        """True when `holder` holds the controller's lease for the next `for_s` seconds of the database's clock."""

    def release_lease(self, holder: str) -> None: ...

    def holder(self) -> str | None:
        """Who holds a lease that has not run out; None for nobody."""

    def states(self) -> Mapping[str, AppState]: ...

    def record(
        self,
        holder: str,
        state: AppState,
        traffic: Traffic | None,
        entries: Sequence[Entry],
        releases: Sequence[ReleaseVersion] = (),
        handled: Sequence[int] = (),
    ) -> None:
        """One transaction: the app's state, its traffic (None: as it was), journal entries, releases newly accepted
        (for `TrafficBoard.release`) and the ids of commands dealt with. Raises LeaseLost, and writes nothing, when
        `holder` no longer holds the lease."""

    def entries(self, app: str, rollout: int | None = None, limit: int = 1000) -> list[Entry]:
        """Oldest first, the newest `limit` of them; of one rollout, or of all."""

    def show_verdict(self, holder: str, live: LiveVerdict) -> None:
        """Replaces what the app's evidence said before. It is for people to look at: no decision reads it. Raises
        LeaseLost, and writes nothing, when `holder` no longer holds the lease."""

    def verdict(self, app: str) -> LiveVerdict | None:
        """The last one shown, maybe of a rollout that has ended; None where there is none that can be read."""

    def submit(self, command: Command) -> int:
        """Durable when it returns: the id by which `handled` is asked. Raises BadInput for a `who` or `why` that cannot
        be kept."""

    def commands(self) -> list[Command]:
        """Those not dealt with, oldest first."""

    def handled(self, command_id: int) -> bool: ...

    def nudge(self, app: str, delivery_id: str, at_s: float) -> bool:
        """A webhook says the app's aliases moved. False when this delivery was seen before."""

    def take_nudges(self) -> set[str]:
        """The apps nudged since the last call; forgets them."""

    def purge(self, older_than_s: float) -> None:
        """Delete commands handled longer ago, and after a day webhook deliveries, reports of routers that no longer
        report and reports on arms of ended rollouts. Entries are kept for ever."""
