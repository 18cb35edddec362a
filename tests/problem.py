"""What every error answer of the endpoint must be."""

from __future__ import annotations

from typing import Any

import httpx


def assert_problem(answer: httpx.Response, status: int, *, field: str | None = None) -> dict[str, Any]:
    """A problem body with this status (and field), whose trace id is in the header too."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["trace_id"] == answer.headers["x-trace-id"]
    if field is not None:
        assert body["field"] == field, body
    return dict(body)
