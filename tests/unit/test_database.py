"""Which databases are opened, and what is said of those that are not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from registry.database import migrate, open_database
from registry.errors import DatabaseRefused, RegistryUnavailable


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "postgresql://h:x/y"]
)
def test_refuses_what_is_no_database_for_all_processes(url: str) -> None:
    with pytest.raises(DatabaseRefused, match=r"sqlite:///FILE"):
        open_database(url)


def test_makes_the_folder_of_a_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a b' / 'c%d' / 'p.db'}"
    migrate(url)
    migrate(url)
    open_database(url).check()
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseRefused):
        open_database(f"sqlite:///{tmp_path / 'file' / 'p.db'}")


def test_a_server_that_is_not_there_is_unavailable_and_its_password_stays_secret() -> None:
    database = open_database("postgresql://palate:hunter2@127.0.0.1:1/palate")
    with pytest.raises(RegistryUnavailable) as unavailable:
        database.check()
    assert "hunter2" not in str(unavailable.value)


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "p.db").write_bytes(b"x" * 5000)
    with pytest.raises(RegistryUnavailable):
        open_database(f"sqlite:///{tmp_path / 'p.db'}").check()


def test_a_locked_database_is_unavailable_for_writes_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'p.db'}"
    migrate(url)
    database = open_database(url, lock_timeout_s=0.05)
    holder = sqlite3.connect(tmp_path / "p.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    database.check()
    with pytest.raises(RegistryUnavailable), database.writing():
        pass
    holder.close()
    with database.writing():
        pass


def test_mistakes_in_a_statement_are_not_called_unavailable(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'p.db'}")
    with pytest.raises(OperationalError), database.reading() as connection:
        connection.execute(text("SELECT * FROM nothing"))


def test_a_write_that_raises_leaves_nothing(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'p.db'}")
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))

    def write_and_raise() -> None:
        with database.writing() as connection:
            connection.execute(text("INSERT INTO t VALUES (1)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_raise()
    with database.reading() as connection:
        assert connection.execute(text("SELECT * FROM t")).all() == []


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'p.db'}"
    migrate(url)
    with open_database(url).writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseRefused, match="newer"):
        migrate(url)
