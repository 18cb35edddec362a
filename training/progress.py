"""Progress of a job's steps: a bar on a terminal, a line every few seconds elsewhere, so that logs stay readable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0
Step = Callable[[int], None]


class Progress:
    """`step` gives a function that takes how much is done."""

    def __init__(self, app: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._console = console
        self._clock = clock

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
        with RichProgress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(f"{self._app}: {name}", total=total)
            yield lambda done: bar.update(task, completed=done)

    @contextmanager
    def _lines(self, name: str, total: int | None) -> Iterator[Step]:
        started = last = self._clock()

        def report(done: int) -> None:
            nonlocal last
            now = self._clock()
            if total and now - last >= LINE_EVERY_S:
                last = now
                rate = done / max(now - started, 1e-6)
                self._say(
                    f"{name}: {done:,} of {total:,}, {rate:,.0f}/s, about {(total - done) / max(rate, 1e-6):.0f} s left"
                )

        yield report

    def _say(self, text: str) -> None:
        self._console.print(f"  {self._app}: {text}", highlight=False)
