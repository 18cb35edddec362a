"""Sources that learnt from what users did, one per file; `make_funnel` makes them of a release's components."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.components.catalogue import Catalogue
from serving.components.funnel import Funnel
from serving.errors import PhaseFailed
from serving.ports import Source
from serving.retrieve.funnels.collaborative import CollaborativeSource
from serving.retrieve.funnels.content import ContentSource
from serving.retrieve.funnels.contextual import ContextualSource
from serving.retrieve.funnels.popularity import PopularitySource


def make_funnel(engine: str, folder: Path, catalogue: Catalogue, name_of: Callable[[str], str]) -> Source:
    """`name_of` gives the pseudonym that training knows a user by. Raises PhaseFailed for a folder that holds none of
    this engine."""
    funnel = Funnel.load(folder)
    if funnel.engine != engine:
        raise PhaseFailed(
            f"{folder.name!r} is of engine {funnel.engine!r}, not {engine!r}: build the release again", phase="retrieve"
        )
    ids = catalogue.ids[: catalogue.rows]
    if engine == "popularity":
        return PopularitySource(funnel, ids)
    if engine == "contextual":
        return ContextualSource(funnel, ids)
    if engine == "collaborative":
        return CollaborativeSource(funnel, ids, name_of)
    return ContentSource(funnel, catalogue, name_of)
