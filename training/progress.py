"""Progress of a job's steps: a bar on a terminal, a line every few seconds elsewhere, so that logs stay readable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0
Step = Callable[[int], None]


class Progress:
    """`step` gives a function that takes how much is done. Steps may run in several threads."""

    def __init__(self, app: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._live: RichProgress | None = None
        self._steps = 0

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Step]:
        started = self._clock()
        with self._bar(name, total) if self._console.is_terminal else self._lines(name, total) as report:
            yield report
        self._say(f"{name}: {self._clock() - started:.1f} s")

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Step]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with self._lock:  # steps may run side by side, but a terminal has one live display
            if self._live is None:
                self._live = RichProgress(*columns, console=self._console, transient=True)
                self._live.start()
            bar = self._live
            self._steps += 1
            task = bar.add_task(f"{self._app}: {name}", total=total)
        try:
            yield lambda done: bar.update(task, completed=done)
        finally:
            with self._lock:
                bar.remove_task(task)
                self._steps -= 1
                if self._steps == 0:
                    bar.stop()
                    self._live = None

    @contextmanager
    def _lines(self, name: str, total: int | None) -> Iterator[Step]:
        started = last = self._clock()

        def report(done: int) -> None:
            nonlocal last
            now = self._clock()
            if total and now - last >= LINE_EVERY_S:
                last = now
                rate = done / max(now - started, 1e-6)
                told = f"{name}: {done:,} of {total:,}"
                if done:  # before the first, the rate says nothing
                    decimals = 1 if rate < 10 else 0
                    told += f", {rate:,.{decimals}f}/s, about {(total - done) / rate:.0f} s left"
                self._say(told)

        yield report

    def _say(self, text: str) -> None:
        self._console.print(f"  {self._app}: {text}", highlight=False)
