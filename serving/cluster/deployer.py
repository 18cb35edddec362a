"""The deployer in a cluster: a Serve replica that runs `serving.local.deployments.Deployer` inside Ray.

It must run once in each Ray cluster. Serve keeps one replica and starts it again wherever it is lost; while one is
replaced by another there are two for a moment, which a lease in the database keeps apart. All it knows is in the
database and in Serve, so the next one does the rest of what was begun.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import ray

from registry.database import Database
from registry.errors import RegistryError
from registry.journal import lease
from serving.config import ServingConfig
from serving.errors import PhaseFailed
from serving.local.deployments import EVERY_S, Deployer
from serving.logs import configure_logs, get_log
from serving.periodic import Periodic
from serving.stores import open_stores

log = get_log(__name__)

LEASE_S = 10.0
RENEW_S = 2.0
HANGS_S = 120.0
"""A pass that takes longer waits for something that will not come: Serve then starts another replica."""


class DatabaseLease:
    """Whether this process is the one that acts, by the database's clock. Not safe to share between threads."""

    def __init__(self, database: Database, name: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.holder = secrets.token_hex(8)
        self._database = database
        self._name = name
        self._monotonic = monotonic
        self._held_until = self._ask_at = 0.0

    def held(self) -> bool:
        """Takes or renews it when due. Raises RegistryUnavailable: it is not held then."""
        now = self._monotonic()
        if now >= self._ask_at:
            self._ask_at = now + RENEW_S
            with self._database.writing() as connection:
                taken = lease.take(connection, self.holder, LEASE_S, self._name)
            self._held_until = now + LEASE_S if taken else 0.0
        return self._monotonic() < self._held_until

    def give_back(self) -> None:
        """So that the next one need not wait for its end. A database that is away lets it run out."""
        self._held_until, self._ask_at = 0.0, float("inf")
        with suppress(RegistryError), self._database.writing() as connection:
            lease.give_back(connection, self.holder, self._name)


class DeployerReplica:
    """The one replica of the Serve application `palate-deployer`; it answers no requests."""

    def __init__(self, config: ServingConfig) -> None:
        configure_logs(config.log)
        stores = open_stores(config)
        self._deployer = Deployer(stores.board, stores.releases, config)
        self._lease = DatabaseLease(stores.database, f"deployer:{ray.get_runtime_context().gcs_address}")
        self._began = time.monotonic()
        self._acts = False
        self._turns = Periodic("deployer", EVERY_S, self._turn)

    async def check_health(self) -> None:
        """Raises PhaseFailed when a pass hangs."""
        if (since_s := time.monotonic() - self._began) > HANGS_S:
            raise PhaseFailed(f"the deployer's pass has taken {since_s:.0f} s", phase="deployer")

    def _turn(self) -> None:
        self._began = time.monotonic()
        acts = self._lease.held()
        if acts != self._acts:
            self._acts = acts
            log.info("deployer.acts" if acts else "deployer.stands_by", holder=self._lease.holder)
        if acts:
            self._deployer.reconcile()

    def __del__(self) -> None:
        """Serve calls it before it ends the replica."""
        if hasattr(self, "_turns") and self._turns.close():
            self._lease.give_back()
