"""Holds what serves: per app the releases that its traffic names, loaded, warmed and behind batchers, and the split of
requests between them. It never serves half a release: a new version is loaded and has answered a real query before it
replaces the old one, which then finishes what it began.

`Router` is made by `serving.stores` and asked by the ingress; `release`, `routes` and `app` are its parts.
"""

from serving.router.app import Means
from serving.router.release import ConnectArm, CountTokens, Embed, Load, LoadedRelease, ServedRelease
from serving.router.router import Router
from serving.router.routes import Route

__all__ = [
    "ConnectArm",
    "CountTokens",
    "Embed",
    "Load",
    "LoadedRelease",
    "Means",
    "Route",
    "Router",
    "ServedRelease",
]
