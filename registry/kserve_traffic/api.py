"""`KubernetesApi`: the few calls of the Kubernetes API that the controller makes, over httpx.

Not the `kubernetes` package: it would be a dependency of 40 MB for GET, PUT and WATCH on one kind of object, its watch
restarts behind the caller's back, and urllib3 below it sleeps through `Retry-After` for as long as the server says.
Here each call has its limit of time, and what to do about a refusal is the caller's decision.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from registry.errors import ClusterConflict, ClusterRefused, RegistryError, RegistryUnavailable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds who it is."""
FIELD_MANAGER = "palate-controller"
TIMEOUT_S = 10.0
BUSY = frozenset({429, 500, 502, 503, 504})

Object = dict[str, Any]


class Throttled(RegistryUnavailable):
    """The API server, or what stands before it, asks to be left alone for `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Expired(RegistryError):
    """The watch cannot go on from where it was: what happened since is forgotten. List again."""


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is ADDED, MODIFIED, DELETED or BOOKMARK (nothing happened up to `version`)."""

    kind: str
    object: Object
    version: str


class KubernetesApi:
    """Objects of one kind in one namespace. Safe to share between threads.

    Every method raises RegistryUnavailable (Throttled where the server says for how long) and ClusterRefused.
    """

    def __init__(
        self,
        server: str,
        collection: str,
        *,
        token: Callable[[], str] = lambda: "",
        verify: Any = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`collection` is the path of the objects; `token` is asked for each call, because kubelet renews it;
        `verify` is as httpx takes it."""
        self._collection = collection
        self._token = token
        self._client = httpx.Client(base_url=server, verify=verify, transport=transport, timeout=TIMEOUT_S)

    @classmethod
    def in_cluster(
        cls, collection: str, env: Mapping[str, str] | None = None, account: Path = ACCOUNT
    ) -> KubernetesApi:
        """As the pod's service account. Raises RegistryError outside a cluster."""
        env = os.environ if env is None else env
        host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT", "443")
        authority, token = account / "ca.crt", account / "token"
        if not host or not authority.is_file():
            raise RegistryError(
                "KUBERNETES_SERVICE_HOST is not set, or the pod has no service account: run in a cluster, with "
                "automountServiceAccountToken, or give the address of the API server"
            )
        import ssl

        address = f"[{host}]" if ":" in host else host
        verify = ssl.create_default_context(cafile=str(authority))
        return cls(
            f"https://{address}:{port}", collection, token=lambda: token.read_text("ascii").strip(), verify=verify
        )

    def get(self, name: str) -> Object | None:
        """None where there is none."""
        answered = self._send("GET", f"{self._collection}/{name}")
        return None if answered.status_code == 404 else self._read(answered)

    def list(self) -> tuple[list[Object], str]:
        """All of them, and the version to watch from. An API server that lacks the kind raises ClusterRefused."""
        listed = self._read(self._send("GET", self._collection))
        return list(listed["items"]), str(listed["metadata"]["resourceVersion"])

    def replace(self, changed: Object) -> Object:
        """Store the object, as whoever read it last. Raises ClusterConflict where another wrote it meanwhile, or where
        it is gone."""
        path = f"{self._collection}/{changed['metadata']['name']}"
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        answered = self._send("PUT", path, params=query, json=changed)
        if answered.status_code in (404, 409):
            raise ClusterConflict(f"{path}: {_message(answered)}")
        return self._read(answered)

    @contextmanager
    def watch(self, version: str, for_s: float) -> Iterator[Iterator[Event]]:
        """What happens after `version`, until the server ends it, after about `for_s`. Raises Expired."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(for_s))),
        }
        limit = httpx.Timeout(TIMEOUT_S, read=for_s + TIMEOUT_S)  # it may be silent for all that time
        try:
            with self._client.stream(
                "GET", self._collection, params=query, headers=self._headers(), timeout=limit
            ) as answered:
                if answered.status_code != 200:
                    answered.read()
                    if answered.status_code == 410:
                        raise Expired(_message(answered))
                    self._read(answered)
                yield self._events(answered)
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"the watch of {self._collection} broke off: {error!r}") from error

    def close(self) -> None:
        self._client.close()

    def _events(self, answered: httpx.Response) -> Iterator[Event]:
        for line in answered.iter_lines():
            if not line:
                continue
            try:
                said = json.loads(line)
                kind, seen = said["type"], said["object"]
                if kind == "ERROR":
                    if seen.get("code") == 410:
                        raise Expired(seen.get("message", "too old resource version"))
                    raise RegistryUnavailable(f"the watch ended: {seen.get('message', seen)}")
                yield Event(kind, seen, str(seen["metadata"]["resourceVersion"]))
            except (ValueError, KeyError, TypeError) as error:
                # Half a line: the connection was cut there
                raise RegistryUnavailable(f"the watch sent what is no event: {line[:100]!r}") from error

    def _send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, headers=self._headers(), **sent)
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"the API server does not answer {method} {path}: {error!r}") from error

    def _headers(self) -> dict[str, str]:
        try:
            token = self._token()
        except OSError as error:
            raise RegistryUnavailable(f"the service account's token cannot be read: {error}") from error
        return {"authorization": f"Bearer {token}"} if token else {}

    def _read(self, answered: httpx.Response) -> Object:
        status = answered.status_code
        said = f"{answered.request.method} {answered.request.url.path}: {status} {_message(answered)}"
        if status in BUSY:
            raise Throttled(said, _retry_after_s(answered))
        if status >= 400:
            raise ClusterRefused(said)
        try:
            read = answered.json()
        except ValueError as error:
            raise RegistryUnavailable(f"{said}: that is no JSON") from error
        if not isinstance(read, dict):
            raise RegistryUnavailable(f"{said}: that is no object")
        return read


def _message(answered: httpx.Response) -> str:
    """The message of the API's Status object, or what else was sent."""
    try:
        return str(answered.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answered.text[:200]


def _retry_after_s(answered: httpx.Response) -> float:
    text = answered.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 1.0
