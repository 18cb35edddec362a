"""A running `wine-orders` in a home of its own, drills allowed: what the benchmarks of rollouts measure."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.data import ROOT
from bench.processes import BenchError
from bench.rollouts import Rollouts
from registry.database import Database, open_database
from registry.journal import SqlBoard, SqlEvidence
from registry.mlflow_store import MlflowStore
from registry.net import free_port

APP = "wine-orders"
CASES = ROOT / "examples" / APP / "evaluation" / "test.jsonl"


@dataclass(slots=True)
class Bench:
    """A running platform and the clients of its stores."""

    url: str
    key: str
    store: MlflowStore
    database: Database
    board: SqlBoard
    evidence: SqlEvidence
    rollouts: Rollouts
    home: Path


@contextmanager
def wine_orders(*options: str, app: Path | str = APP, name: str = APP, learner: bool = False) -> Iterator[Bench]:
    """`palate up` with these options, of the example or of a folder with a variant of it; `name` is that of another
    app. Raises BenchError when it does not start."""
    with tempfile.TemporaryDirectory(prefix="palate-bench-") as folder:
        home, port, mlflow_port = Path(folder) / "home", free_port(), free_port()
        environment = {**os.environ, "PALATE_HOME": str(home), "PALATE_DRILLS": "1"}
        palate = [sys.executable, "-m", "serving.cli"]
        up = [*palate, "up", "--app", str(app), "--port", str(port), "--mlflow-port", str(mlflow_port), "--detach"]
        up += ["--learner" if learner else "--no-learner", *options]
        try:
            done = subprocess.run(up, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"palate up ended with {done.returncode}: {done.stdout}{done.stderr}")
            database = open_database(f"sqlite:///{home / 'palate.db'}")
            key = (home / "api-key").read_text(encoding="utf-8").strip()
            url, store = f"http://127.0.0.1:{port}", MlflowStore(f"http://127.0.0.1:{mlflow_port}")
            board, evidence = SqlBoard(database), SqlEvidence(database)
            yield Bench(url, key, store, database, board, evidence, Rollouts(url, key, store, name), home)
            database.close()
        finally:
            subprocess.run([*palate, "down"], env=environment, cwd=ROOT, capture_output=True, check=False)
