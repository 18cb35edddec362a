"""Structured logs: one JSON object a line, with the trace id where there is one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import orjson
import structlog

Log = structlog.typing.FilteringBoundLogger


def configure_logs(destination: str) -> None:
    """`destination` is `stderr` or a file, which is appended to; whole lines, so several processes can share it."""
    if destination == "stderr":
        stream: Any = sys.stderr.buffer
    else:
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered append: each line is one write, which the kernel keeps whole.
        stream = Path(destination).open("ab", buffering=0)  # noqa: SIM115 - lives as long as the process
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )


def get_log(name: str) -> Log:
    log: Log = structlog.get_logger(module=name)
    return log


def _to_json(event: MutableMapping[str, Any] | Mapping[str, Any], **_: Any) -> bytes:
    return orjson.dumps(event, default=str)
