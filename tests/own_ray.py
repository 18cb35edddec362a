"""A Ray Serve of the test's own, without an endpoint: the test's process is the deployer and the caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.local import cluster
from serving.local.home import Home


@contextmanager
def ray_of_our_own(home: Home, further: Mapping[str, str] | None = None) -> Iterator[None]:
    """The environment is what `palate up` sets and `further`, but without HAProxy; and without tokens: another test may
    have imported Ray, which reads that setting then."""
    with pytest.MonkeyPatch.context() as patch:
        settings = cluster.ray_environment(home, home.root / "log.jsonl")
        here = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_AUTH_MODE": "disabled", **(further or {})}
        for name, value in {**settings, **here}.items():
            patch.setenv(name, value)
        Path(settings["PROMETHEUS_MULTIPROC_DIR"]).mkdir(parents=True, exist_ok=True)
        from ray import serve

        try:
            cluster.start_ray(home, 4, None)
            serve.start(proxy_location="Disabled")
            yield
        finally:
            cluster.stop_ray()
