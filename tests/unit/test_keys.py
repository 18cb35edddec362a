"""API keys: known only to who holds them, refused soon after they are revoked, and not stopped by a database outage."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from registry.database import Database, migrate, open_database
from serving.errors import BadRequest, NotFound, Overloaded, StoreUnavailable, Unauthorized
from serving.keys import CACHE_S, SCOPES, STALE_S, ApiKey, ApiKeys, RateLimiter
from serving.secret_files import ensure_trace_secret


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'p.db'}"
    migrate(url)
    database = open_database(url)
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(database: Database, clock: Clock) -> ApiKeys:
    return ApiKeys(database, clock, clock)


def bearer(plaintext: str) -> str:
    return f"Bearer {plaintext}"


def take_away(folder: Path) -> None:
    """Make the database unusable, as a damaged disk would."""
    for path in folder.glob("p.db*"):
        path.unlink()
    (folder / "p.db").write_bytes(b"this is not a database, whatever it may look like from afar" * 100)


def test_a_key_is_what_it_was_made_as(keys: ApiKeys) -> None:
    made = keys.create("shop", ["query", "feedback"], apps=["wine-orders"], rate_per_s=5.0, burst=9.0)
    key = ApiKey(made.id, "shop", frozenset({"query", "feedback"}), frozenset({"wine-orders"}), 5.0, 9.0, 1000.0)
    assert keys.authenticate(bearer(made.plaintext)) == key
    assert keys.authenticate(f"bearer   {made.plaintext} ") == key
    assert keys.entries() == [key]
    everywhere = keys.create("ops", SCOPES)
    assert keys.authenticate(bearer(everywhere.plaintext)).apps is None


def test_the_secret_is_long_random_and_not_stored(keys: ApiKeys, tmp_path: Path) -> None:
    made = keys.create("shop", ["query"])
    prefix, key_id, secret = made.plaintext.split("_")
    assert (prefix, key_id) == ("pk", made.id)
    assert len(bytes.fromhex(secret)) * 8 >= 160
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in stored
    assert hashlib.sha256(made.plaintext.encode()).hexdigest().encode() in stored


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer abc", "Bearer pk_1_2_3", "Bearer pk__", "Bearer pk_가_x"],
)
def test_refuses_what_is_no_key(keys: ApiKeys, header: str | None) -> None:
    with pytest.raises(Unauthorized):
        keys.authenticate(header)
    assert keys.cached(header) is None


def test_refuses_a_wrong_secret_without_repeating_it(keys: ApiKeys) -> None:
    made = keys.create("shop", ["query"])
    other = keys.create("other", ["query"])
    keys.authenticate(bearer(made.plaintext))
    for wrong in (made.plaintext[:-1], f"pk_{made.id}_{other.plaintext.split('_')[2]}", f"pk_nobody_{'0' * 48}"):
        with pytest.raises(Unauthorized) as refused:
            keys.authenticate(bearer(wrong))
        assert wrong.split("_")[2] not in refused.value.detail


def test_refuses_unknown_scopes_and_rates(keys: ApiKeys) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("scopes", {"scopes": ["query", "root"]}),
        ("rate_per_s", {"scopes": ["query"], "rate_per_s": 0}),
        ("burst", {"scopes": ["query"], "burst": -1}),
    ]
    for field, options in wrong:
        with pytest.raises(BadRequest) as refused:
            keys.create("x", **options)
        assert refused.value.field == field
    with pytest.raises(BadRequest):
        keys.create("x", [])
    assert keys.entries() == []


def test_a_revoked_key_is_refused_here_at_once_and_elsewhere_within_the_cache_time(
    keys: ApiKeys, database: Database, clock: Clock
) -> None:
    made = keys.create("shop", ["query"])
    elsewhere = ApiKeys(database, clock, clock)
    elsewhere.authenticate(bearer(made.plaintext))
    keys.authenticate(bearer(made.plaintext))
    clock.now += 1
    keys.revoke(made.id)
    with pytest.raises(Unauthorized):
        keys.authenticate(bearer(made.plaintext))
    clock.now += CACHE_S - 1
    assert elsewhere.cached(bearer(made.plaintext)) is None
    with pytest.raises(Unauthorized):
        elsewhere.authenticate(bearer(made.plaintext))
    keys.revoke(made.id)
    assert [key.revoked_at for key in keys.entries()] == [1001.0]
    with pytest.raises(NotFound):
        keys.revoke("nobody")


def test_known_keys_outlive_an_outage(keys: ApiKeys, database: Database, clock: Clock, tmp_path: Path) -> None:
    used = keys.create("used", ["query"])
    unused = keys.create("unused", ["query"])
    key = keys.authenticate(bearer(used.plaintext))
    database.close()
    take_away(tmp_path)
    assert keys.authenticate(bearer(used.plaintext)) == key  # from the cache
    clock.now += CACHE_S
    assert keys.authenticate(bearer(used.plaintext)) == key
    assert keys.cached(bearer(used.plaintext)) == key
    with pytest.raises(StoreUnavailable):
        keys.authenticate(bearer(unused.plaintext))
    clock.now += STALE_S
    with pytest.raises(StoreUnavailable):
        keys.authenticate(bearer(used.plaintext))


def test_the_local_key_has_every_scope_and_is_its_owners_only(keys: ApiKeys, tmp_path: Path) -> None:
    path = keys.ensure_local_key(tmp_path / "home")
    assert path == tmp_path / "home" / "api-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.authenticate(bearer(path.read_text().strip())).scopes == SCOPES
    first = path.read_text()
    path.chmod(0o644)
    keys.ensure_local_key(tmp_path / "home")
    assert path.read_text() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(keys.entries()) == 1


def test_a_local_key_of_an_older_version_gets_the_scopes_that_are_new(
    keys: ApiKeys, database: Database, tmp_path: Path
) -> None:
    path = keys.ensure_local_key(tmp_path)
    plaintext = path.read_text().strip()
    other = keys.create("narrow", {"query"})
    with database.writing() as connection:
        connection.execute(text("UPDATE api_keys SET scopes = '[\"admin\", \"query\"]' WHERE name = 'local'"))
    keys.ensure_local_key(tmp_path)
    scopes = {key.name: key.scopes for key in keys.entries()}
    assert scopes == {"local": SCOPES, "narrow": frozenset({"query"})}
    assert path.read_text().strip() == plaintext
    path.write_text(other.plaintext)  # a person put another key there: it stays what it is
    keys.ensure_local_key(tmp_path)
    assert {key.name: key.scopes for key in keys.entries()} == scopes


def test_the_local_key_is_registered_again_in_a_new_database(keys: ApiKeys, tmp_path: Path) -> None:
    path = keys.ensure_local_key(tmp_path)
    url = f"sqlite:///{tmp_path / 'new.db'}"
    migrate(url)
    new = open_database(url)
    others = ApiKeys(new)
    with pytest.raises(Unauthorized):
        others.authenticate(bearer(path.read_text().strip()))
    before = path.read_text()
    others.ensure_local_key(tmp_path)
    assert path.read_text() == before
    assert others.authenticate(bearer(before.strip())).scopes == SCOPES
    new.close()


def test_a_revoked_local_key_is_replaced(keys: ApiKeys, tmp_path: Path) -> None:
    path = keys.ensure_local_key(tmp_path)
    old = path.read_text().strip()
    keys.revoke(keys.authenticate(bearer(old)).id)
    keys.ensure_local_key(tmp_path)
    assert keys.authenticate(bearer(path.read_text().strip())).scopes == SCOPES
    with pytest.raises(Unauthorized):
        keys.authenticate(bearer(old))


@pytest.mark.parametrize("content", ["", "hello", "pk_only-two"])
def test_a_file_that_holds_no_key_is_named(keys: ApiKeys, tmp_path: Path, content: str) -> None:
    (tmp_path / "api-key").write_text(content)
    with pytest.raises(BadRequest, match="api-key"):
        keys.ensure_local_key(tmp_path)


def test_a_file_with_another_secret_of_a_known_id_is_refused(keys: ApiKeys, tmp_path: Path) -> None:
    path = keys.ensure_local_key(tmp_path)
    path.write_text(path.read_text().strip()[:-4] + "zzzz")
    with pytest.raises(BadRequest, match="api-key"):
        keys.ensure_local_key(tmp_path)


def test_first_starts_at_once_agree_on_one_key(database: Database, tmp_path: Path) -> None:
    threads = [threading.Thread(target=ApiKeys(database).ensure_local_key, args=(tmp_path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = ApiKeys(database)
    assert len(keys.entries()) == 1
    assert keys.authenticate(bearer((tmp_path / "api-key").read_text().strip())).name == "local"
    assert not list(tmp_path.glob(".api-key.????????"))


def test_the_trace_secret_stays_the_same(tmp_path: Path) -> None:
    secret = ensure_trace_secret(tmp_path / "home")
    assert len(secret) == 32
    assert ensure_trace_secret(tmp_path / "home") == secret != ensure_trace_secret(tmp_path / "other")
    assert stat.S_IMODE((tmp_path / "home" / "trace-secret").stat().st_mode) == 0o600
    (tmp_path / "home" / "trace-secret").write_text("short")
    with pytest.raises(BadRequest, match="trace-secret"):
        ensure_trace_secret(tmp_path / "home")


def key(rate_per_s: float | None = None, burst: float | None = None, key_id: str = "k") -> ApiKey:
    return ApiKey(key_id, "name", SCOPES, None, rate_per_s, burst)


def test_a_burst_then_the_rate(clock: Clock) -> None:
    limiter = RateLimiter(monotonic=clock)
    for _ in range(3):
        limiter.take(key(2.0, 3.0))
    with pytest.raises(Overloaded) as refused:
        limiter.take(key(2.0, 3.0))
    assert refused.value.retry_after_s == pytest.approx(0.5)
    clock.now += 0.5
    limiter.take(key(2.0, 3.0))
    with pytest.raises(Overloaded):
        limiter.take(key(2.0, 3.0))
    clock.now += 1000
    for _ in range(3):
        limiter.take(key(2.0, 3.0))
    with pytest.raises(Overloaded):
        limiter.take(key(2.0, 3.0))


def test_keys_do_not_share_a_bucket(clock: Clock) -> None:
    limiter = RateLimiter(monotonic=clock)
    limiter.take(key(1.0, 1.0))
    limiter.take(key(1.0, 1.0, "other"))
    with pytest.raises(Overloaded):
        limiter.take(key(1.0, 1.0, "other"))


def test_a_cost_above_the_burst_passes_when_full_and_is_paid_back(clock: Clock) -> None:
    limiter = RateLimiter(monotonic=clock)
    limiter.take(key(10.0, 5.0), cost=25)
    with pytest.raises(Overloaded) as refused:
        limiter.take(key(10.0, 5.0))
    assert refused.value.retry_after_s == pytest.approx(2.1)
    clock.now += 2.1
    limiter.take(key(10.0, 5.0))


def test_the_default_rate_is_for_keys_without_one(clock: Clock) -> None:
    unlimited = RateLimiter(monotonic=clock)
    for _ in range(1000):
        unlimited.take(key())
    limiter = RateLimiter(2.0, clock)
    limiter.take(key(), cost=2)
    with pytest.raises(Overloaded):
        limiter.take(key())
    limiter.take(key(100.0, key_id="own"), cost=50)


def test_sqlite_is_durable_and_shared(database: Database) -> None:
    """The settings that acknowledged writes and several processes rest on."""
    with database.engine.connect() as connection:
        pragmas = {p: connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in
                   ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    assert sqlite3.threadsafety == 3
