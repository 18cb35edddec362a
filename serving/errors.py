"""The error tree of the query side, ordered by what the caller should do about it.

    PalateError
      BadRequest           change the request
      Unauthorized         send a key
      Forbidden            ask for a scope
      NotFound             name something that exists
      Conflict             look at what stands: it rules out what was asked
      TooLarge             send less at once
      Overloaded           wait `retry_after_s`, then send it again
      DeadlineExceeded     allow more time, or ask for less
      PhaseFailed          report it: the platform is at fault
      ReplicaLost          send it again: the replica that had it is gone
      StoreUnavailable     wait, then send it again: nothing was lost

`STATUS` is the only table that maps them to HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PalateError(Exception):
    """An error a caller can act upon. `detail` names the fault and the fix; `field` the input at fault."""

    title = "Palate error"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field

    def __reduce__(self) -> tuple[Callable[..., PalateError], tuple[type[PalateError], str, dict[str, Any]]]:
        # Replicas raise them for each other: arguments by keyword are lost in the default way.
        return _restore, (type(self), self.detail, dict(self.__dict__))


def _restore(kind: type[PalateError], detail: str, attributes: dict[str, Any]) -> PalateError:
    error = kind.__new__(kind, detail)
    error.__dict__.update(attributes)
    return error


class BadRequest(PalateError):
    title = "The request is not valid"


class Unauthorized(PalateError):
    title = "An API key is needed"


class Forbidden(PalateError):
    title = "The API key lacks the scope"


class NotFound(PalateError):
    title = "There is no such thing"


class Conflict(PalateError):
    title = "What stands rules it out"


class TooLarge(PalateError):
    title = "The request is too large"


class Overloaded(PalateError):
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(PalateError):
    title = "The deadline passed"


class PhaseFailed(PalateError):
    title = "A phase of the pipeline failed"

    def __init__(self, detail: str, *, phase: str) -> None:
        super().__init__(detail)
        self.phase = phase


class ReplicaLost(PalateError):
    """A replica of an arm died, or its application is not there any more. No user sees it: stable answers instead."""

    title = "The replica that had the request was lost"


class StoreUnavailable(PalateError):
    title = "The store cannot be reached"


STATUS: dict[type[PalateError], int] = {
    BadRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Overloaded: 429,
    PhaseFailed: 500,
    ReplicaLost: 503,
    StoreUnavailable: 503,
    DeadlineExceeded: 504,
}
