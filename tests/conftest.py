"""For all tests: those that start servers or kill processes run one at a time, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

HEAVY = {"fault", "integration", "e2e"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-xdist (`--dist loadgroup`, see scripts/test) keeps a group on one worker."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).parts[0] in HEAVY:
            item.add_marker(pytest.mark.xdist_group("heavy"))
