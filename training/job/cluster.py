"""The Ray that a training job runs on, and what it can give.

Without an address the job starts a Ray of its own on this machine, for as long as it runs. It shares nothing with the
Ray of `palate up`: it has its own processes, object store, token and logical CPUs, so Serve's replicas, which may have
claimed every CPU of theirs, neither lend a job anything nor lose anything to it. The cores are shared by the operating
system, where workers are nicer than replicas (niceness 10 against 0). On a cluster that serves too (an address is
given), a worker has to fit into what Serve has left; `scaling.num_cpus` may be a fraction there, down to 0.01, and says
only what is reserved: a worker computes with at least one thread.

Called by `fit` and `search`; the only place of training that sets Ray's environment.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.schema.train_spec import ScalingSpec
from training.errors import TrainingRefused

NICENESS = 10
"""Of workers: on a machine that also serves, queries come first."""
POLL_S = "0.5"
"""How often Ray Train looks at its workers; its default of 2 s is added to every start and end of a job."""
OBJECT_STORE_BYTES = 128 * 2**20  # data and checkpoints go through files


@dataclass(frozen=True, slots=True)
class Where:
    """`address` of a Ray cluster; "": one of the job's own. `plain`: no Ray, one worker in this process. `wait_s`: for
    CPUs and GPUs that another job holds. `retries`: how often in a row workers may be lost without a new checkpoint."""

    address: str = ""
    plain: bool = False
    wait_s: float = 60.0
    retries: int = 3

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Where:
        """PALATE_RAY_ADDRESS: an address, `local` (a Ray of its own) or `none` (no Ray); else RAY_ADDRESS, which a job
        that was submitted to a cluster has."""
        env = os.environ if env is None else env
        address = env.get("PALATE_RAY_ADDRESS") or env.get("RAY_ADDRESS", "")
        return cls("" if address in ("local", "none") else address, plain=address == "none")


@contextmanager
def ray_cluster(where: Where) -> Iterator[None]:
    """Connected to the cluster, or to a new one. A Ray that this process is connected to already is used and left as it
    is. Raises TrainingRefused."""
    own = "ray" not in sys.modules
    if own:
        _set_environment(where)
    import ray

    if ray.is_initialized():
        yield
        return
    folder = _own_folder() if not where.address else None
    try:
        _connect(where, folder)
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def resources(scaling: ScalingSpec) -> dict[str, float]:
    """Of one worker, by Ray's names."""
    gpus = {"GPU": scaling.num_gpus} if scaling.num_gpus else {}
    return {"CPU": scaling.num_cpus, **gpus, **scaling.resources}


def shortage(scaling: ScalingSpec, workers: int, *, now: bool = False) -> str | None:
    """What the cluster lacks for `workers`, as a sentence; `now`: counting what others hold. None: nothing."""
    import ray

    there = ray.available_resources() if now else ray.cluster_resources()
    lacks = [
        f"{workers * amount:g} {name} ({workers} x {amount:g}) and {'' if now else 'in all '}{there.get(name, 0.0):g} "
        f"{'is free' if now else 'there'}"
        for name, amount in resources(scaling).items()
        if workers * amount > there.get(name, 0.0)
    ]
    return "; ".join(lacks) or None


def check_fits(where: Where, scaling: ScalingSpec, workers: int) -> None:
    """Refuse at once what a cluster of our own can never give; another one may grow. Raises TrainingRefused."""
    if where.address:
        return
    if lacks := shortage(scaling, workers):
        raise TrainingRefused(_asked(lacks))


def refused(where: Where, scaling: ScalingSpec, workers: int) -> TrainingRefused:
    """For a job that waited `where.wait_s` in vain."""
    lacks = shortage(scaling, workers) or shortage(scaling, workers, now=True) or "no node has room for one of them"
    return TrainingRefused(f"waited {where.wait_s:g} s for workers: {_asked(lacks)}")


def _asked(lacks: str) -> str:
    return f"`scaling` asks for {lacks}: lower `workers`, `num_cpus` or `num_gpus`, or give the cluster more"


def _set_environment(where: Where) -> None:
    """Before Ray is imported. What the caller has set for a cluster of its own stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    if not where.address:
        os.environ.update({"RAY_worker_niceness": str(NICENESS)})  # not the 0 that `palate up` sets for replicas
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # one process less: nobody takes this machine away
        if "RAY_AUTH_MODE" not in os.environ:  # other users of this machine have no business in it
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _connect(where: Where, folder: Path | None) -> None:
    import ray

    try:
        if folder is None:
            ray.init(address=where.address, log_to_driver=False, logging_level="warning")
            return
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # a start that takes Ray more than 30 s is a plain Exception to it
        at = f"the Ray cluster at {where.address} cannot be reached" if folder is None else "Ray could not start"
        raise TrainingRefused(f"{at}: {' '.join(str(error).split())[:300]}") from error


def _own_folder() -> Path:
    """Short, for the paths of Unix sockets may have 107 characters. Those of killed jobs are removed."""
    root = Path(tempfile.gettempdir()) / f"palate-t{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise TrainingRefused(f"{root} belongs to another user: remove it, or set TMPDIR")
    for left in root.iterdir():
        if left.name.isdigit() and not psutil.pid_exists(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    folder = root / str(os.getpid())
    folder.mkdir(exist_ok=True)
    return folder
