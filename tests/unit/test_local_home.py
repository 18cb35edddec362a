"""A home's secrets, and the ports of this machine."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.net import LOOPBACK, free_port, port_fault
from serving.local.home import Home, SetupError, check_port


def test_a_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: home.secret("ray"), range(32)))
    [secret] = secrets
    assert len(secret) == 32
    assert (tmp_path / "ray.secret").stat().st_mode & 0o777 == 0o600
    assert home.secret("other") != secret


def test_a_secret_of_an_earlier_version_is_kept(tmp_path: Path) -> None:
    (tmp_path / "ray.secret").write_text("ab" * 32)  # without a line feed
    assert Home(tmp_path).secret("ray") == bytes.fromhex("ab" * 32)


@pytest.mark.parametrize("text", ["", "no hex", "abcd"])
def test_a_spoilt_secret_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ray.secret").write_text(text)
    with pytest.raises(SetupError, match=r"ray\.secret"):
        Home(tmp_path).secret("ray")


def test_a_port_is_free_until_somebody_listens() -> None:
    port = free_port()
    assert port_fault(port) is None
    check_port(port, "--port")
    with socket.socket() as taken:
        taken.bind((LOOPBACK, port))
        taken.listen()
        assert port_fault(port)
        with pytest.raises(SetupError, match=f"{port}.*--port"):
            check_port(port, "--port")
    assert port_fault(port) is None
    assert port_fault(70_000)
