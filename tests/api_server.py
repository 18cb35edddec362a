"""An API server of Kubernetes, as far as the controller uses one: custom objects over real HTTP, resource versions, the
status subresource, schemas (unknown fields pruned, or refused where asked), watches with bookmarks that end, forget
and break, and the refusals of a busy server.

What it does is written down from the API's documentation; the `kubernetes` client of Python, a package of its own,
agrees (tests/contract/test_kubernetes_api.py). Those tests also run against a real
kube-apiserver with KServe's CRDs where KUBE_API_URL names one: no package registry has its binary. It is no cluster:
nothing is admitted by webhooks but what a test adds, and KServe itself is played by `tests.kserve_world`.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.api_objects import Object, Refusal, Schema, json_patched, merged

PATH = re.compile(r"(?P<collection>/apis/[^/]+/[^/]+/namespaces/[^/]+/[^/]+)(/(?P<name>[^/]+))?(/(?P<sub>status))?")
BOOKMARK_EVERY_S = 0.5


class Reply(NamedTuple):
    status: int
    body: Object | Iterator[bytes]
    headers: Mapping[str, str] = {}


@dataclass
class Kind:
    """`admit` may raise Refusal, as a validating webhook does."""

    api_version: str
    kind: str
    schema: Schema | None = None
    admit: Callable[[Object], None] = lambda _: None


class Fault(NamedTuple):
    """What happens to a request in place of its answer: a `reply`, a wait, the answer `lost` after it was done."""

    reply: Reply | None = None
    wait_s: float = 0.0
    lost: bool = False


class ApiServer:
    """`faults` are consumed one a request; `token`, where set, has to be sent. Served by `over_http`, or called without
    a socket by way of `transport`."""

    def __init__(self, kinds: Mapping[str, Kind], token: str = "") -> None:
        """`kinds`: path of a collection -> what it holds."""
        self.kinds = dict(kinds)
        self.token = token
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, str]] = []
        self._objects: dict[tuple[str, str], Object] = {}
        self._version = 100
        self._events: list[tuple[int, str, str, Object]] = []
        self._forgotten = 0
        self._watches = 0
        self._cut = 0
        self._changed = threading.Condition()

    # --- what a test does to it ---

    def forget(self) -> None:
        """What happened until now cannot be watched any more, as after a compaction of etcd."""
        with self._changed:
            self._forgotten = self._version
            self._events.clear()

    def cut_watches(self) -> None:
        with self._changed:
            self._cut += 1
            self._changed.notify_all()

    def wait_for_watch(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._watches > 0, 30), "nobody watches"

    def transport(self) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            query = dict(parse_qsl(request.url.query.decode()))
            try:
                reply = self.handle(request.method, request.url.path, query, request.headers, request.content)
            except ConnectionError as error:
                raise httpx.ReadError(str(error)) from error
            content = json.dumps(reply.body).encode() if isinstance(reply.body, dict) else b"".join(reply.body)
            return httpx.Response(reply.status, headers=dict(reply.headers), content=content)

        return httpx.MockTransport(handle)

    # --- requests ---

    def handle(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """Raises ConnectionError where a fault loses the answer."""
        self.requests.append((method, path))
        fault = self.faults.popleft() if self.faults else Fault()
        if fault.wait_s:
            time.sleep(fault.wait_s)
        if fault.reply is not None:
            return fault.reply
        try:
            reply = self._route(method, path, query, headers, body)
        except Refusal as refusal:
            reply = Reply(refusal.code, refusal.status())
        if fault.lost:
            raise ConnectionError("the answer is lost")
        return reply

    def _route(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        found = PATH.fullmatch(path)
        if found is None or found["collection"] not in self.kinds:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        where, name, sub = found["collection"], found["name"], found["sub"]
        with self._changed:
            if name is None:
                if method == "POST":
                    return Reply(201, self._create(where, json.loads(body), query))
                return self._watch(where, query) if query.get("watch") == "true" else Reply(200, self._list(where))
            current = self._objects.get((where, name))
            if current is None:
                raise Refusal(404, "NotFound", f'{where.rsplit("/", 1)[1]} "{name}" not found')
            if method == "GET":
                return Reply(200, copy.deepcopy(current))
            if method == "DELETE":
                del self._objects[where, name]
                self._happen(where, "DELETED", current)
                return Reply(200, {"kind": "Status", "status": "Success"})
            wanted = json.loads(body) if method == "PUT" else self._patched(current, headers, body)
            return Reply(200, self._update(where, current, wanted, query, sub == "status"))

    def _create(self, where: str, made: Object, query: Mapping[str, str]) -> Object:
        name = made["metadata"]["name"]
        if (where, name) in self._objects:
            raise Refusal(409, "AlreadyExists", f'{where.rsplit("/", 1)[1]} "{name}" already exists')
        made.pop("status", None)
        self._check(where, made, query)
        made["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "namespace": where.split("/")[5]}
        _note_manager(made, None, query)
        return self._store(where, made, "ADDED")

    def _update(self, where: str, current: Object, wanted: Object, query: Mapping[str, str], status: bool) -> Object:
        name, sent = current["metadata"]["name"], wanted["metadata"].get("resourceVersion")
        if sent is None:
            raise Refusal(
                422, "Invalid", "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
            )
        if sent != current["metadata"]["resourceVersion"]:
            message = "the object has been modified; please apply your changes to the latest version and try again"
            raise Refusal(409, "Conflict", f'Operation cannot be fulfilled on "{name}": {message}')
        if status:
            changed = {**copy.deepcopy(current), "status": wanted.get("status")}
        else:
            changed = {key: value for key, value in copy.deepcopy(wanted).items() if key != "status"}
            if "status" in current:
                changed["status"] = current["status"]
            kept = ("uid", "generation", "namespace", "name", "resourceVersion", "managedFields")
            changed["metadata"] |= {key: current["metadata"][key] for key in kept if key in current["metadata"]}
        self._check(where, changed, query)
        if changed == current:
            return copy.deepcopy(current)
        if changed.get("spec") != current.get("spec"):
            changed["metadata"]["generation"] += 1
        _note_manager(changed, current, query)
        return self._store(where, changed, "MODIFIED")

    def _patched(self, current: Object, headers: Mapping[str, str], body: bytes) -> Object:
        kind, patch = headers.get("content-type", ""), json.loads(body)
        if kind == "application/merge-patch+json":
            changed = merged(current, patch)
        elif kind == "application/json-patch+json":
            changed = json_patched(current, patch)
        else:
            raise Refusal(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}")
        changed["metadata"].setdefault("resourceVersion", current["metadata"]["resourceVersion"])
        return changed

    def _store(self, where: str, changed: Object, event: str) -> Object:
        self._objects[where, changed["metadata"]["name"]] = changed
        self._happen(where, event, changed)
        return copy.deepcopy(changed)

    def _happen(self, where: str, kind: str, changed: Object) -> None:
        self._version += 1
        changed["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, where, kind, copy.deepcopy(changed)))
        self._changed.notify_all()

    def _list(self, where: str) -> Object:
        kind = self.kinds[where]
        items = [copy.deepcopy(found) for (at, _), found in sorted(self._objects.items()) if at == where]
        metadata = {"resourceVersion": str(self._version)}
        return {"apiVersion": kind.api_version, "kind": f"{kind.kind}List", "metadata": metadata, "items": items}

    # --- watches ---

    def _watch(self, where: str, query: Mapping[str, str]) -> Reply:
        since = int(query.get("resourceVersion") or 0)
        ends_at = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        return Reply(200, self._stream(where, since, ends_at, query.get("allowWatchBookmarks") == "true"))

    def _stream(self, where: str, since: int, ends_at: float, bookmarks: bool) -> Iterator[bytes]:
        """Nothing is yielded under the lock: each line may be asked for by another thread."""
        cut = self._cut
        self._count_watches(1)
        bookmark_at = time.monotonic() + BOOKMARK_EVERY_S
        try:
            while time.monotonic() < ends_at:
                with self._changed:
                    if self._version <= since and self._cut == cut:
                        self._changed.wait(0.05)
                    forgotten, broken, newest = self._forgotten, self._cut > cut, self._version
                    fresh = [event for event in self._events if event[0] > since and event[1] == where]
                if since < forgotten:
                    yield _line("ERROR", Refusal(410, "Expired", f"too old resource version: {since}").status())
                    return
                if broken:
                    yield b'{"type":"MODIFIED","obj'  # the connection breaks within a line
                    return
                since = newest
                for _, _, kind, found in fresh:
                    yield _line(kind, found)
                if bookmarks and time.monotonic() >= bookmark_at:
                    bookmark_at = time.monotonic() + BOOKMARK_EVERY_S
                    of = self.kinds[where]
                    at = {"resourceVersion": str(since)}
                    yield _line("BOOKMARK", {"kind": of.kind, "apiVersion": of.api_version, "metadata": at})
        finally:
            self._count_watches(-1)

    def _count_watches(self, more: int) -> None:
        with self._changed:
            self._watches += more
            self._changed.notify_all()

    def _check(self, where: str, checked: Object, query: Mapping[str, str]) -> None:
        kind = self.kinds[where]
        if (checked.get("apiVersion"), checked.get("kind")) != (kind.api_version, kind.kind):
            raise Refusal(400, "BadRequest", f"this is no {kind.kind} of {kind.api_version}")
        if kind.schema:
            kind.schema.check(checked, query.get("fieldValidation") == "Strict")
        kind.admit(checked)


def _note_manager(changed: Object, before: Object | None, query: Mapping[str, str]) -> None:
    if before is not None and changed.get("spec") == before.get("spec"):
        return
    records = changed["metadata"].setdefault("managedFields", [])
    manager = query.get("fieldManager") or "unknown"
    records[:] = [record for record in records if record["manager"] != manager]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}Z"
    records.append({"manager": manager, "operation": "Update", "time": stamp, "fieldsV1": {"f:spec": {}}})


def _line(kind: str, found: Object) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


def over_http(server: ApiServer) -> Any:
    """A context manager that gives the URL."""
    from tests.endpoint import listening  # much of Palate: only who wants HTTP waits for it

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        request = Request(scope, receive)
        body = await request.body()
        from starlette.concurrency import run_in_threadpool

        reply = await run_in_threadpool(
            server.handle, request.method, request.url.path, dict(request.query_params), request.headers, body
        )
        answered: Response
        if isinstance(reply.body, dict):
            content = json.dumps(reply.body)
            answered = Response(content, reply.status, dict(reply.headers), media_type="application/json")
        else:
            answered = StreamingResponse(reply.body, reply.status, dict(reply.headers), media_type="application/json")
        await answered(scope, receive, send)

    return listening(app)
