"""What travels between a job's workers and its driver: events one way, the word to stop the other.

Both are files in the job's folder, which the workers need anyway for data and checkpoints. So no process of its own
carries them, a report costs some 50 microseconds, and the same works on one machine and on shared storage. An attempt
(one start of the workers) has a name: workers of an earlier one that are still alive find another name in
`attempt.json`, and end.

Called by `training.job.loop` (workers) and by `fit` and `search` (driver).
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from registry.files import replace_file

Event = Mapping[str, Any]
"""{"kind": "total", "steps"} | {"kind": "restored", "step"} | {"kind": "report", "step", "metrics"} |
{"kind": "stopped"} | {"kind": "error", "rank", "type", "text", "trace", "collateral"}"""


class Channel(Protocol):
    """A worker's side."""

    def tell(self, event: Event) -> None: ...

    def told_to_stop(self) -> bool: ...


class Direct:
    """Loop and driver are one process."""

    def __init__(self, on: Callable[[Event], None], stop: Callable[[], bool]) -> None:
        self.tell = on
        self.told_to_stop = stop


class Outbox:
    """A worker of the attempt `attempt`, in a process of its own. Only rank 0 asks whether to stop."""

    def __init__(self, folder: Path, attempt: str, rank: int) -> None:
        self._control = folder / "attempt.json"
        self._attempt = attempt
        self._events = _events(folder, attempt, rank)

    def tell(self, event: Event) -> None:
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def told_to_stop(self) -> bool:
        """Also once another attempt has taken over."""
        try:
            control = json.loads(self._control.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return True  # the folder is gone: nobody waits for the result
        return bool(control["stop"] or control["attempt"] != self._attempt)


class Mailbox:
    """The driver's side of one attempt."""

    def __init__(self, folder: Path, ranks: int) -> None:
        """Takes over: workers of an earlier attempt end."""
        self.attempt = uuid.uuid4().hex
        self._folder = folder
        shutil.rmtree(folder / "events", ignore_errors=True)
        (folder / "events").mkdir(parents=True)
        self._files = [_events(folder, self.attempt, rank) for rank in range(ranks)]
        self._read = [0] * ranks
        self._write(stop=False)

    def stop(self) -> None:
        self._write(stop=True)

    def drain(self) -> list[Event]:
        """The events since the last call, in the order of each rank. A line that is still being written waits."""
        events: list[Event] = []
        for rank, path in enumerate(self._files):
            try:
                with path.open("rb") as file:
                    file.seek(self._read[rank])
                    new = file.read()
            except FileNotFoundError:
                continue
            whole = new[: new.rfind(b"\n") + 1]
            self._read[rank] += len(whole)
            events += [json.loads(line) for line in whole.splitlines()]
        return events

    def _write(self, *, stop: bool) -> None:
        replace_file(self._folder / "attempt.json", json.dumps({"attempt": self.attempt, "stop": stop}))


def _events(folder: Path, attempt: str, rank: int) -> Path:
    return folder / "events" / f"{attempt}-{rank}.jsonl"
