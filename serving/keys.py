"""API keys: who may call what, and how often.

The ingress authenticates and limits every request with them; `palate up` makes the local key, `palate keys` the others.
A key's secret has 192 random bits, so one SHA-256 of it is enough at rest: a slow password hash protects secrets that
people choose, and nobody can guess this one from its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from sqlalchemy import select, update

from registry.database import Database
from registry.database.dialect import insert
from serving.errors import BadRequest, NotFound, Overloaded, StoreUnavailable, Unauthorized
from serving.secret_files import read_or_create_secret
from serving.store.base import SqlStore
from serving.store.tables import api_keys

SCOPES = frozenset({"query", "feedback", "items", "admin", "pin"})
"""`pin` lets a request name the release that answers it. No scope implies another."""
LOCAL_KEY_FILE = "api-key"
CACHE_S = 5.0
STALE_S = 3600.0
CACHE_SIZE = 10_000
SECRET_BYTES = 24
ID_BYTES = 6


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. `apps` None: every app. Rates are requests per second; None: the default."""

    id: str
    name: str
    scopes: frozenset[str]
    apps: frozenset[str] | None = None
    rate_per_s: float | None = None
    burst: float | None = None
    created_at: float = 0.0
    revoked_at: float | None = None


class NewKey(NamedTuple):
    id: str
    plaintext: str
    """Known only now: it is not stored."""


class _Seen(NamedTuple):
    key: ApiKey
    checked_at: float
    tried_at: float


class ApiKeys(SqlStore):
    """The keys in the database. `clock` gives Unix seconds, `monotonic` ages the cache.

    Methods raise StoreUnavailable when the database cannot be used, but a key that was seen good in the last hour goes
    on being accepted then: queries and feedback must not stop with the database.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(database, clock)
        self._monotonic = monotonic
        self._seen: dict[bytes, _Seen] = {}
        self._lock = threading.Lock()

    def create(
        self,
        name: str,
        scopes: Collection[str],
        apps: Collection[str] | None = None,
        rate_per_s: float | None = None,
        burst: float | None = None,
    ) -> NewKey:
        """A new key; its plaintext can be shown this once. Raises BadRequest for an unknown scope or a rate <= 0."""
        unknown = sorted(set(scopes) - SCOPES)
        if unknown or not scopes:
            raise BadRequest(f"scopes {sorted(scopes)}: give some of {sorted(SCOPES)}", field="scopes")
        for field, value in (("rate_per_s", rate_per_s), ("burst", burst)):
            if value is not None and not value > 0:
                raise BadRequest(f"{field} is {value}: give a number above 0, or none", field=field)
        new = new_key()
        key = ApiKey(
            new.id,
            name,
            frozenset(scopes),
            None if apps is None else frozenset(apps),
            rate_per_s,
            burst,
            created_at=self._clock(),
        )
        self._register(key, new.plaintext)
        return new

    def entries(self) -> list[ApiKey]:
        """Every key, revoked ones too, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
            return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> None:
        """Refused everywhere within CACHE_S seconds. Raises NotFound; revoking twice keeps the first time."""
        with self._writing() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
            if row is None:
                raise NotFound(f"there is no API key {key_id!r}", field="id")
            if row.revoked_at is None:
                connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=self._clock()))
        with self._lock:
            self._seen = {digest: seen for digest, seen in self._seen.items() if seen.key.id != key_id}

    def authenticate(self, header: str | None) -> ApiKey:
        """The key of an `Authorization: Bearer pk_…` header. Raises Unauthorized.

        Asks the database at most every CACHE_S seconds per key, so it may block; `cached` never does.
        """
        key_id, plaintext = _parse(header)
        digest = _digest(plaintext)
        now = self._monotonic()
        seen = self._seen.get(digest)
        if seen is not None and now - seen.tried_at < CACHE_S:
            return seen.key
        try:
            key = self._check(key_id, digest)
        except StoreUnavailable:
            if seen is None or now - seen.checked_at > STALE_S:
                raise
            self._remember(digest, seen._replace(tried_at=now))
            return seen.key
        except Unauthorized:
            with self._lock:
                self._seen.pop(digest, None)
            raise
        self._remember(digest, _Seen(key, now, now))
        return key

    def cached(self, header: str | None) -> ApiKey | None:
        """What `authenticate` would return without asking the database, or None. For an event loop: takes no I/O."""
        try:
            seen = self._seen.get(_digest(_parse(header)[1]))
        except Unauthorized:
            return None
        return seen.key if seen is not None and self._monotonic() - seen.tried_at < CACHE_S else None

    def ensure_local_key(self, home: Path) -> Path:
        """The file with the local key, which has every scope: written on the first start, readable by its owner only.

        A key in the file that the database does not know (a new database) is registered again; one that was revoked
        is replaced. Raises BadRequest when the file holds something else.
        """
        home.mkdir(parents=True, exist_ok=True)
        path = home / LOCAL_KEY_FILE
        with FileLock(home / f".{LOCAL_KEY_FILE}.lock"):
            plaintext = read_or_create_secret(path, lambda: new_key().plaintext)
            if not self._accept_local(path, plaintext):
                path.unlink()
                self._accept_local(path, read_or_create_secret(path, lambda: new_key().plaintext))
        return path

    def accept_first_key(self, plaintext: str) -> None:
        """Register a key that an operator made, with every scope, where it is not known yet: one that was revoked
        stays so. Raises BadRequest for text that is no key, or whose id another key has."""
        try:
            key_id, plaintext = _parse(f"Bearer {plaintext}")
        except Unauthorized:
            raise BadRequest(
                f"the secret {LOCAL_KEY_FILE!r} is no API key: it must read pk_<12 hex>_<48 hex>"
            ) from None
        self._register(ApiKey(key_id, "first", SCOPES, created_at=self._clock()), plaintext)
        with self._reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one()
        if not hmac.compare_digest(row.secret_sha256, _digest(plaintext).hex()):
            raise BadRequest(f"the secret {LOCAL_KEY_FILE!r}: another key has the id {key_id}; make a new one")

    def _accept_local(self, path: Path, plaintext: str) -> bool:
        """Register the key if it is unknown; False if it was revoked."""
        try:
            key_id, plaintext = _parse(f"Bearer {plaintext}")
        except Unauthorized:
            raise BadRequest(f"{path} holds no API key: delete it, and the next start writes one") from None
        self._register(ApiKey(key_id, "local", SCOPES, created_at=self._clock()), plaintext)
        with self._reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one()
        if not hmac.compare_digest(row.secret_sha256, _digest(plaintext).hex()):
            raise BadRequest(f"{path} is not the key that was made: delete it, and the next start writes one")
        scopes = json.dumps(sorted(SCOPES))
        if row.name == "local" and row.scopes != scopes:  # an older version made it, which knew fewer
            with self._writing() as connection:
                connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(scopes=scopes))
        return row.revoked_at is None

    def _register(self, key: ApiKey, plaintext: str) -> None:
        row = {
            "id": key.id,
            "name": key.name,
            "secret_sha256": _digest(plaintext).hex(),
            "scopes": json.dumps(sorted(key.scopes)),
            "apps": None if key.apps is None else json.dumps(sorted(key.apps)),
            "rate_per_s": key.rate_per_s,
            "burst": key.burst,
            "created_at": key.created_at,
        }
        with self._writing() as connection:
            connection.execute(insert(connection, api_keys).values(row).on_conflict_do_nothing())

    def _check(self, key_id: str, digest: bytes) -> ApiKey:
        with self._reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        good = hmac.compare_digest(digest.hex(), row.secret_sha256 if row is not None else "")
        if row is None or not good:
            raise Unauthorized("the API key is not known: send one that `palate keys create` showed")
        if row.revoked_at is not None:
            raise Unauthorized("the API key was revoked: ask for a new one")
        return _key(row)

    def _remember(self, digest: bytes, seen: _Seen) -> None:
        with self._lock:
            if len(self._seen) >= CACHE_SIZE:
                self._seen.clear()
            self._seen[digest] = seen


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """A token bucket per key, in this process: `rate_per_s` on average, `burst` at once.

    Keys that set no rate get `default_rate_per_s`; 0 is no limit. Keys that set no burst get one second's worth.
    """

    def __init__(self, default_rate_per_s: float = 0.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._default_rate_per_s = default_rate_per_s
        self._monotonic = monotonic
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, key: ApiKey, cost: float = 1.0) -> None:
        """Raises Overloaded with the seconds to wait. A cost above the burst needs a full bucket, and empties it below
        zero, so that the average holds."""
        rate = key.rate_per_s if key.rate_per_s is not None else self._default_rate_per_s
        if rate <= 0:
            return
        burst = key.burst if key.burst is not None else max(1.0, rate)
        with self._lock:
            now = self._monotonic()
            bucket = self._buckets.setdefault(key.id, _Bucket(burst, now))
            bucket.tokens = min(burst, bucket.tokens + (now - bucket.filled_at) * rate)
            bucket.filled_at = now
            missing = min(cost, burst) - bucket.tokens
            if missing <= 0:
                bucket.tokens -= cost
                return
        raise Overloaded(
            f"key {key.id!r} may make {rate:g} requests per second: wait, then send it again",
            retry_after_s=missing / rate,
        )


def new_key() -> NewKey:
    """Random, and known to no database yet."""
    key_id = secrets.token_hex(ID_BYTES)
    return NewKey(key_id, f"pk_{key_id}_{secrets.token_hex(SECRET_BYTES)}")


def _parse(header: str | None) -> tuple[str, str]:
    """(key id, the whole key) of a header. Raises Unauthorized; its text never repeats what was sent."""
    scheme, _, plaintext = (header or "").strip().partition(" ")
    plaintext = plaintext.strip()
    parts = plaintext.split("_")
    if scheme.lower() != "bearer" or len(parts) != 3 or parts[0] != "pk" or not plaintext.isascii():
        raise Unauthorized("send the header `Authorization: Bearer pk_…` with an API key")
    return parts[1], plaintext


def _digest(plaintext: str) -> bytes:
    return hashlib.sha256(plaintext.encode()).digest()


def _key(row: Any) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=frozenset(json.loads(row.scopes)),
        apps=None if row.apps is None else frozenset(json.loads(row.apps)),
        rate_per_s=row.rate_per_s,
        burst=row.burst,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
