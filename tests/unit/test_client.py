"""The `palate` command's client: what it makes of answers that are not 200."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.client import PalateClient
from serving.errors import Overloaded


@contextmanager
def busy(retry_after: str) -> Iterator[str]:
    """The URL of a server that refuses everything as overloaded."""

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(429)
            self.send_header("retry-after", retry_after)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def ahead(minutes: float) -> Callable[[], str]:
    return lambda: format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        (lambda: "7", 7, 7),
        (ahead(10), 60, 600),
        (ahead(-10), 0, 0),
        (lambda: "soon", 1, 1),
        (lambda: "-3", 1, 1),
        (lambda: "", 1, 1),
    ],
    ids=["seconds", "date", "past", "words", "negative", "empty"],
)
def test_how_long_to_wait_is_seconds_or_a_date(retry_after: Callable[[], str], least: float, most: float) -> None:
    with busy(retry_after()) as url, PalateClient(url, "key") as client, pytest.raises(Overloaded) as refused:
        client.apps()
    assert least <= refused.value.retry_after_s <= most
