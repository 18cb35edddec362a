"""A small HTTP client of the endpoint, for the `palate` command: finds the address and the key of a home by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from serving.errors import (
    STATUS,
    BadRequest,
    NotFound,
    Overloaded,
    PalateError,
    PhaseFailed,
    StoreUnavailable,
)
from serving.local.home import Home

RETRIES = 3


class PalateClient:
    """Blocking; a context manager. Errors of the server come back as the errors of `serving.errors`."""

    def __init__(self, url: str, key: str, timeout_s: float = 60.0) -> None:
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"authorization": f"Bearer {key}"},
                timeout=timeout_s,
                transport=httpx.HTTPTransport(retries=RETRIES),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise BadRequest(f"PALATE_URL={url!r} or the API key cannot be used: {error}") from None

    @classmethod
    def of_home(cls, home: Home) -> PalateClient:
        """As `endpoint_of`, with its errors."""
        return cls(*endpoint_of(home))

    @property
    def url(self) -> str:
        return str(self._http.base_url)

    def apps(self) -> list[dict[str, Any]]:
        return list(self._send("GET", "/v1/apps")["apps"])

    def query(self, app: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", f"/v1/apps/{app}/query", body)

    def stream_query(self, app: str, body: Mapping[str, Any]) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """(name, data) of each event of a generated answer; see the query route. Closing it ends the answer."""
        path = f"/v1/apps/{app}/query"
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _error(answer)
                name = ""
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        data = json.loads(line.removeprefix("data: "))
                        if name == "error":
                            raise _told(int(data["status"]), str(data["detail"]), data.get("field"))
                        yield name, data
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise StoreUnavailable(f"{self._http.base_url} does not answer: {error}") from None

    def feedback(self, app: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", f"/v1/apps/{app}/feedback", body)

    def items(self, app: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        return self._send(
            "GET", f"/v1/apps/{app}/items", params={"limit": limit, **({"cursor": cursor} if cursor else {})}
        )

    def put_items(self, app: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self._send("PUT", f"/v1/apps/{app}/items", {"items": list(items)})

    def delete_items(self, app: str, ids: Sequence[str]) -> dict[str, Any]:
        return self._send("DELETE", f"/v1/apps/{app}/items", {"ids": list(ids)})

    def rollout(self, app: str) -> dict[str, Any]:
        return self._send("GET", f"/v1/apps/{app}/rollout")

    def command_rollout(self, app: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises Conflict when it is refused."""
        return self._send("POST", f"/v1/apps/{app}/rollout", body)

    def rollouts(self, app: str, limit: int) -> list[dict[str, Any]]:
        return list(self._send("GET", f"/v1/apps/{app}/rollouts", params={"limit": limit})["rollouts"])

    def rollout_story(self, app: str, number: int) -> dict[str, Any]:
        return self._send("GET", f"/v1/apps/{app}/rollouts/{number}")

    def rollout_report(self, app: str, number: int) -> str:
        """An HTML page."""
        return self._ask("GET", f"/v1/apps/{app}/rollouts/{number}/report").text

    def ready(self) -> dict[str, Any]:
        return dict(self._http.get("/readyz").json())

    def __enter__(self) -> PalateClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            return dict(self._ask(method, path, body, params).json())
        except (ValueError, TypeError):
            raise BadRequest(f"{self._http.base_url} answers, but is no Palate endpoint: check PALATE_URL") from None

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body, params=params)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise StoreUnavailable(f"{self._http.base_url} does not answer: {error}") from None
        if not answer.is_success:
            raise _error(answer)
        return answer


def endpoint_of(home: Home) -> tuple[str, str]:
    """(address, key): PALATE_URL and PALATE_API_KEY win over what the home says. Raises StoreUnavailable when nothing
    runs."""
    url = os.environ.get("PALATE_URL")
    if url is None:
        running = home.running()
        if running is None:
            raise StoreUnavailable(
                f"nothing runs in {home.root}: start it with `palate up`, or set PALATE_URL and PALATE_API_KEY"
            )
        url = running.url
    return url, os.environ.get("PALATE_API_KEY") or _read_key(home.api_key_file)


def _read_key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise NotFound(f"there is no key in {file}: `palate up` writes one, or set PALATE_API_KEY") from None


def _error(answer: httpx.Response) -> PalateError:
    try:
        body = answer.json()
        detail, field = str(body["detail"]), body.get("field")
    except (ValueError, KeyError):
        detail, field = f"{answer.status_code}: {answer.text[:200]}", None
    return _told(answer.status_code, detail, field, _retry_after_s(answer))


def _told(status: int, detail: str, field: str | None, retry_after_s: float = 1.0) -> PalateError:
    kind = {status: kind for kind, status in STATUS.items()}.get(status, BadRequest)
    if kind is Overloaded:
        return Overloaded(detail, retry_after_s=retry_after_s)
    if kind is PhaseFailed:
        return PhaseFailed(detail, phase="?")
    return kind(detail, field=field)


def _retry_after_s(answer: httpx.Response) -> float:
    """Seconds, or a date as proxies write it (RFC 9110); 1 for what is neither."""
    text = answer.headers.get("retry-after", "1")
    try:
        if text.isascii() and text.isdigit():
            return float(text)
        at = parsedate_to_datetime(text)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 1.0
