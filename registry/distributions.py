"""No other installed distribution may own `serving`, `registry` or `training`: it would shadow ours, or ours it.

The last step of the image's build runs `python -m registry.distributions`; a test does the same for this checkout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

OURS = ("serving", "registry", "training")


def intruders(installed: Iterable[Distribution]) -> list[str]:
    """`distribution: name` for each of our import names that another distribution brings."""
    found = set()
    for distribution in installed:
        if distribution.name == "palate":
            continue
        tops = {Path(file.parts[0]).name.removesuffix(".py") for file in distribution.files or [] if file.parts}
        tops |= set((distribution.read_text("top_level.txt") or "").split())
        found |= {f"{distribution.name}: {name}" for name in OURS if name in tops}
    return sorted(found)


def main() -> int:
    """Status 1 with one line per intruder."""
    found = intruders(distributions())
    for line in found:
        print(f"palate: another distribution owns one of our import names: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
