"""Stand-ins for what training talks to. They pass the contract suites of the adapters they stand in for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class MemoryTracking:
    """`training.tracking.Tracking` that remembers. `logged` are the metrics as (name, value, step), in order."""

    def __init__(self, name: str = "run") -> None:
        self.name = name
        self.run_id = f"memory-{name}"
        self.set_params: dict[str, str] = {}
        self.set_tags: dict[str, str] = {}
        self.logged: list[tuple[str, float, int]] = []
        self.artifacts: list[tuple[str, str]] = []
        self.children: dict[str, MemoryTracking] = {}
        self.state = "RUNNING"
        self._dropped = 0

    def params(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            if self.set_params.setdefault(name, str(value)) != str(value):
                self._dropped += 1

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.logged += [(name, float(value), step) for name, value in values.items()]

    def tags(self, values: Mapping[str, str]) -> None:
        self.set_tags |= values

    def status(self, text: str) -> None:
        self.set_tags["palate.status"] = text

    def artifact(self, path: Path, under: str = "") -> None:
        if not path.exists():
            self._dropped += 1
            return
        files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
        base = path if path.is_dir() else path.parent
        self.artifacts += [(under, file.relative_to(base).as_posix()) for file in files]

    def child(self, name: str) -> MemoryTracking:
        if name not in self.children:
            self.children[name] = MemoryTracking(name)
        return self.children[name]

    def finish(self) -> int:
        self.state = "FINISHED"
        return self._dropped

    def fail(self, why: str) -> int:
        self.status(why)
        self.state = "FAILED"
        return self._dropped
