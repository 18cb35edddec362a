"""TCP ports of this machine: find a free one, ask whether one is taken.

Called by whatever starts a server here: `palate up`, MLflow, the benchmark, tests. Each turns `port_fault` into an
error of its own that names the option to change.
"""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now. Another process may take it before the caller does."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_fault(port: int) -> str | None:
    """Why a server could not listen on the port, or None where it could. One that just ended is no obstacle."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.strerror
        except OverflowError:
            return f"{port} is no port: there are 0 to 65535"
    return None
