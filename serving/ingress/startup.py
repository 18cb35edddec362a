"""A starting endpoint takes requests once it can answer them: a replica that is ready too early fails real queries
while others, which a rollout of Kubernetes or of Serve is about to end, could still have answered.

Called by the lifespan of the ingress, before the server counts as started.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from registry.errors import RegistryError, ReleaseNotFound
from serving.logs import get_log

if TYPE_CHECKING:
    from serving.ingress.asgi import Services

log = get_log(__name__)

LOOK_EVERY_S = 0.2


async def hold(services: Services, within_s: float) -> None:
    """Return when every app that has a stable release serves it, at the latest after `within_s`: then the others go
    on, and feedback and items are taken even while MLflow is away. An app without any release is not waited for, since
    its catalogue comes through this endpoint."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        waiting = [app for app in services.router.problems() if await asyncio.to_thread(_has_release, services, app)]
        if not waiting:
            return
        await asyncio.sleep(LOOK_EVERY_S)
    if problems := dict(services.router.problems() if within_s else {}):
        log.warning("endpoint.starts_without", problems=problems)


def _has_release(services: Services, app: str) -> bool:
    if services.router.traffic(app) is not None:
        return True
    try:
        services.steering.releases.get(app, "stable")
    except ReleaseNotFound:
        return False
    except RegistryError:  # it may have one
        return True
    return True
