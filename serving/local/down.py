"""`palate down`: ends the platform of a home: asks it, then makes sure. Never touches a process it did not start."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

from serving.local.home import Home, Running, alive

GRACE_S = 40.0


def stop_running(home: Home) -> str:
    """Returns what happened, in a sentence. Safe to repeat, also after `palate up` itself was killed."""
    state = home.last_state()
    if state is None:
        return f"Nothing runs in {home.root}."
    # Taken while the parent lives: afterwards nobody knows whose children they were.
    processes = _processes(state)
    if not processes:
        home.state_file.unlink(missing_ok=True)
        return f"Nothing runs in {home.root} any more."
    if alive(state.pid, state.created_s):
        os.kill(state.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while alive(state.pid, state.created_s) and time.monotonic() < deadline:
            time.sleep(0.1)
    left = [process for process in processes if process.is_running()]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    home.state_file.unlink(missing_ok=True)
    return f"Stopped {state.url} and MLflow."


def _processes(state: Running) -> list[psutil.Process]:
    """The platform's own process, those recorded when it was ready, and their descendants now."""
    found: dict[int, psutil.Process] = {}
    for pid, created_s in ((state.pid, state.created_s), *state.children):
        if alive(pid, created_s):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return list(found.values())
