"""The platform's own processes beside the endpoint, as children of `palate up`: started again when they end.

`palate controller` moves rollouts; `palate learner` starts training runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from registry.mlflow_server import stop_group
from serving.local.home import Home

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
SETTLED_S = 60.0
"""A process that ran for so long did not end because of how it was started."""


class KeptProcess:
    """`palate ARGUMENTS`. `keep` starts it, and again when it ended: at once, then with growing pauses. Serving goes on
    meanwhile. Its log is `<first argument>.jsonl` in the home."""

    def __init__(self, home: Home, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._log = home.logs / f"{arguments[0]}.jsonl"
        self._environment = {**os.environ, **environment, "PALATE_LOG": str(self._log)}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._pause_s = 0.0

    @property
    def log(self) -> Path:
        return self._log

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def keep(self) -> bool:
        """True when it was started just now."""
        ended = self._process is not None
        if self._process is not None and self._process.poll() is None:
            return False
        ran_s = time.monotonic() - self._started_s
        if ended and ran_s < self._pause_s:
            return False
        self._pause_s = 0.0 if ran_s >= SETTLED_S else min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._started_s = time.monotonic()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as stream:  # what it says before its log is open
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.cli", *self._arguments],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        return True

    def stop(self, timeout_s: float = 10.0) -> None:
        """Safe to call twice, and before it was ever started."""
        if self._process is not None:
            stop_group(self._process, timeout_s)
            self._process = None


class ControllerProcess(KeptProcess):
    """`palate controller`."""

    def __init__(self, home: Home, environment: Mapping[str, str]) -> None:
        super().__init__(home, ["controller"], environment)


class LearnerProcess(KeptProcess):
    """`palate learner` for the apps in these folders."""

    def __init__(self, home: Home, folders: Sequence[Path], environment: Mapping[str, str]) -> None:
        super().__init__(home, ["learner", *map(str, folders)], environment)
