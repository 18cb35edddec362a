"""What a caller gets when a call to another process goes wrong, and that no call is left running for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serving.errors import BadRequest, DeadlineExceeded, Overloaded, PhaseFailed, ReplicaLost
from serving.far import Far


class Response:
    """As a handle's: awaited for the outcome, and can be cancelled."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        if self._outcome is None:
            yield from asyncio.sleep(60).__await__()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    def __init__(self, response: Response) -> None:
        self._response = response

    def remote(self, *arguments: Any) -> Response:
        return self._response


class Handle:
    """A handle whose every call ends in `outcome`; None: it never ends."""

    deployment_name = "arm"

    def __init__(self, outcome: Any) -> None:
        self.response = Response(outcome)
        self.embed = Method(self.response)

    def options(self, **_: Any) -> Handle:
        return self


def task_error(cause: Exception) -> RayTaskError:
    error = RayTaskError("handle_request", "traceback of the replica", cause)
    return error.as_instanceof_cause()  # type: ignore[no-any-return]


def outcome_of(outcome: Any, limit_s: float = 5.0) -> Any:
    handle = Handle(outcome)
    return asyncio.run(Far(handle, limit_s).call("embed", ["x"]))  # type: ignore[arg-type]


def test_an_answer_comes_through():
    assert outcome_of([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (task_error(BadRequest("no such field", field="filters")), BadRequest),
        (task_error(PhaseFailed("understand: it broke", phase="understand")), PhaseFailed),
        (task_error(ValueError("it broke")), PhaseFailed),
        (task_error(MemoryError("no more")), PhaseFailed),
        (task_error(TimeoutError("inside the release")), PhaseFailed),
        (BackPressureError(65, 64), Overloaded),
        (ActorDiedError(), ReplicaLost),
        (ActorUnavailableError("it does not answer", b"\1" * 16), ReplicaLost),
        (RequestCancelledError("1"), ReplicaLost),
        (asyncio.CancelledError(), ReplicaLost),
    ],
)
def test_each_fault_is_an_error_that_says_whose_it_is(outcome: BaseException, error: type[Exception]):
    with pytest.raises(error) as raised:
        outcome_of(outcome)
    assert type(raised.value) is error


def test_the_releases_own_error_keeps_what_it_says():
    with pytest.raises(BadRequest) as raised:
        outcome_of(task_error(BadRequest("no such field", field="filters")))
    assert (raised.value.detail, raised.value.field) == ("no such field", "filters")


def test_a_call_past_its_limit_is_cancelled_where_it_runs():
    handle = Handle(None)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(Far(handle, 0.01).call("embed"))  # type: ignore[arg-type]
    assert handle.response.cancelled


def test_a_call_whose_caller_leaves_is_cancelled_where_it_runs():
    handle = Handle(None)

    async def leave() -> None:
        task = asyncio.ensure_future(Far(handle, 60).call("embed"))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert handle.response.cancelled
