"""The driver's ears: what the loop tells becomes a progress bar, metrics of the run, and at worst one clear error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType

import training.errors
from training.errors import TrainingError, TrainingFailed
from training.job.channel import Event
from training.progress import Progress
from training.tracking import Tracking

log = logging.getLogger(__name__)


class Follower:
    """Takes the events of a job, over all its attempts. The bar counts from the step that was restored, so that its
    rate is that of this process."""

    def __init__(self, name: str, progress: Progress, tracking: Tracking) -> None:
        self.stopped = False
        self.errors: list[Event] = []
        self._name = name
        self._progress = progress
        self._tracking = tracking
        self._stack = ExitStack()
        self._bar: Callable[[int], None] | None = None
        self._total: int | None = None
        self._from = 0
        self._step = 0

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def begin(self) -> None:
        """An attempt starts: what the one before failed of is over."""
        self.errors.clear()

    def __call__(self, event: Event) -> None:
        match event["kind"]:
            case "total":
                self._total = int(event["steps"])
            case "restored":
                log.info("%s goes on from step %d", self._name, event["step"])
                if self._bar is None:
                    self._from = int(event["step"])
            case "report":
                self._step = max(self._step, int(event["step"]))
                self._show()
                self._tracking.metrics(event["metrics"], int(event["step"]))
            case "stopped":
                self.stopped = True
            case "error":
                log.error("worker %d of %s:\n%s", event["rank"], self._name, event["trace"])
                self.errors.append(event)

    def _show(self) -> None:
        if self._bar is None:
            left = None if self._total is None else max(self._total - self._from, 0)
            name = f"{self._name}: steps" + (f" after {self._from}" if self._from else "")
            self._bar = self._stack.enter_context(self._progress.step(name, left))
        self._bar(self._step - self._from)


def failure(errors: Sequence[Event]) -> TrainingError | None:
    """The first error that a worker raised by itself, as one line; None where they only miss each other. An error of
    ours keeps its type."""
    for event in errors:
        if event["collateral"]:
            continue
        kind = getattr(training.errors, event["type"], None)
        if isinstance(kind, type) and issubclass(kind, TrainingError):
            return kind(event["text"])
        return TrainingFailed(f"{event['type']} in the trainer's loop: {event['text']} (the log has the trace)")
    return None
