"""The platform that several end-to-end modules use, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.platform import EXAMPLES, Platform, running


@pytest.fixture(scope="session")
def wine_platform() -> Iterator[Platform]:
    """wine-orders, on which tests try releases. Each leaves it without a rollout; which release is stable then is its
    own business: ask, and derive from that one."""
    drills = {"PALATE_DRILLS": "1", "PALATE_ARM_MEMORY_MB": "1500"}
    with running([EXAMPLES / "wine-orders"], "--no-learner", **drills) as platform:
        yield platform
