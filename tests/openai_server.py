"""A tiny server that speaks OpenAI's chat protocol over real HTTP, for the tests of batches and extraction. It answers
every review with a keyword made of its text, and misbehaves as it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What one request gets. `content` None: a right answer. `cut`: the connection ends in the middle of the body."""

    content: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay_s: float = 0.0
    cut: bool = False


RIGHT = Reply()
Plan = Callable[[int, str], Reply]
"""(number of the request from 0, the text it is about) -> what it gets."""


def right_answer(text: str) -> dict[str, list[str]]:
    return {"who": [f"said {text[:20]}"], "when": [], "why": ["model"]}


@dataclass
class OpenAiServer:
    """`requests`: the bodies in the order of their arrival; `most_at_once`: how many were under way together."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def texts(self) -> list[str]:
        """What was asked about, a text for each request."""
        return [body["messages"][1]["content"] for body in self.requests]


class _Handler(BaseHTTPRequestHandler):
    """One connection; `about` and `plan` are set by the subclass of each server."""

    protocol_version = "HTTP/1.1"
    about: OpenAiServer
    plan: staticmethod[[int, str], Reply]

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        about, text = self.about, body["messages"][1]["content"]
        with about.lock:
            number = len(about.requests)
            about.requests.append(body)
            about.headers.append(dict(self.headers))
            about.at_once += 1
            about.most_at_once = max(about.most_at_once, about.at_once)
        try:
            self.answer(self.plan(number, text), text)
        finally:
            with about.lock:
                about.at_once -= 1

    def answer(self, reply: Reply, text: str) -> None:
        time.sleep(reply.delay_s)
        said = json.dumps(right_answer(text)) if reply.content is None else reply.content
        told = reply.body
        if told is None:
            told = _events(said)
        sent = told.encode()
        try:
            self.send_response(reply.status)
            kind = "text/event-stream" if reply.body is None else "application/json"
            for name, value in {"Content-Type": kind, **reply.headers, "Content-Length": str(len(sent))}.items():
                self.send_header(name, value)
            self.end_headers()
            if reply.cut:
                self.wfile.write(sent[: len(sent) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.wfile.write(sent)
        except OSError:
            self.close_connection = True  # the client gave up waiting


def _events(said: str) -> str:
    """The stream of a chat completion: two pieces, why it ended, what it took."""
    half = len(said) // 2
    about = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
    pieces = [{"delta": {"content": part}, "index": 0} for part in (said[:half], said[half:])]
    told: list[dict[str, Any]] = [{**about, "choices": [{**one, "finish_reason": None}]} for one in pieces]
    told.append({**about, "choices": [{"delta": {}, "index": 0, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 7, "completion_tokens": len(said.split()), "total_tokens": 7 + len(said.split())}
    told.append({**about, "choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(one)}\n\n" for one in told) + "data: [DONE]\n\n"


@contextmanager
def openai_server(plan: Plan = lambda number, text: RIGHT) -> Iterator[OpenAiServer]:
    about = OpenAiServer("")
    handler = type("Handler", (_Handler,), {"about": about, "plan": staticmethod(plan)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    about.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield about
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
