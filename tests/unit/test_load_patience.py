"""A bulk load and an endpoint that is busy: it waits as it is asked to, not for ever, and for nothing else."""

from __future__ import annotations

import pytest

from serving.commands.data import LEAST_WAIT_S, LONGEST_WAIT_S, PATIENCE_S, patiently
from serving.errors import Overloaded, StoreUnavailable


class Busy:
    """Refuses as often as there are waits, in seconds, to ask for."""

    def __init__(self, *waits_s: float) -> None:
        self.waits_s = list(waits_s)
        self.taken = 0
        self.slept_s: list[float] = []
        self.said: list[str] = []

    def send(self) -> None:
        if self.waits_s:
            raise Overloaded("too many", retry_after_s=self.waits_s.pop(0))
        self.taken += 1

    def load(self) -> None:
        patiently(self.send, self.said.append, self.slept_s.append)


def test_it_waits_as_long_as_it_is_asked_to() -> None:
    busy = Busy(2.5, 0.0, 3600.0)
    busy.load()
    assert busy.slept_s == [2.5, LEAST_WAIT_S, LONGEST_WAIT_S]
    assert (busy.taken, len(busy.said)) == (1, 1)
    assert "too many" in busy.said[0]


def test_what_is_taken_at_once_is_not_spoken_of() -> None:
    busy = Busy()
    busy.load()
    assert (busy.taken, busy.slept_s, busy.said) == (1, [], [])


def test_it_gives_up_in_the_end() -> None:
    busy = Busy(*[LONGEST_WAIT_S] * 1000)
    with pytest.raises(Overloaded):
        busy.load()
    assert sum(busy.slept_s) == PATIENCE_S
    assert busy.taken == 0


def test_another_fault_is_not_waited_for() -> None:
    def away() -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        patiently(away, print, lambda _: pytest.fail("it waited"))
