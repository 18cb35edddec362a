"""A real PostgreSQL for tests, where its server is installed: a private cluster in a temporary folder.

Import the fixtures in a folder's conftest.py: `from tests.postgres import postgres, postgres_url  # noqa: F401`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))


class PostgresServer:
    """The cluster; `stop` and `start` it as a fault would."""

    def __init__(self, folder: Path) -> None:
        self._bin = INSTALLED[-1].parent
        self._folder = folder
        # PostgreSQL refuses to run as root
        self._user = "postgres" if "postgres" in {u.pw_name for u in pwd.getpwall()} else "nobody"
        self._as_user = self._user if os.geteuid() == 0 else None
        if self._as_user:
            shutil.chown(folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        # A locale whose order is not the code points', which the stores must not depend on
        self._run("initdb", "--username=palate", "--auth=trust", "--encoding=UTF8", "--no-sync",
                  "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")  # fmt: skip

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}", f"--options={options}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def url(self, database: str) -> str:
        return f"postgresql://palate@127.0.0.1:{self.port}/{database}"

    def create(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), f"--pgdata={self._folder / 'data'}", *arguments]
        subprocess.run(
            command, check=True, timeout=120, cwd=self._folder, stdout=subprocess.DEVNULL, user=self._as_user
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if not INSTALLED:
        pytest.skip("PostgreSQL's server is not installed (Debian package: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="palate-postgres-"))  # pytest's own folders are closed to other users
    try:
        server = PostgresServer(folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """A new, empty database."""
    return postgres.create()
