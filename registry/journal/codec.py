"""Rows of the rollout tables as JSON text and back, and the checks on what people and processes hand in.

The SQL adapters and the memory stand-ins share it, so that all of them keep exactly the same. Texts that end up before
people lose what looks like a secret on their way in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import orjson

from registry import manifest
from registry.analysis.verdict import LiveVerdict, ShadowCounts, verdict_from_json, verdict_to_json
from registry.errors import BadInput
from registry.schema import ReleaseVersion
from registry.traffic import TOKEN_CHARS, ArmReport, Block, Command, Entry, RouterReport, Traffic

MAX_WHO_CHARS = 200
MAX_WHY_CHARS = 2000
MAX_ID_CHARS = 256
LATENCY_DIGITS = 2
MEASURE_DIGITS = 4

_TRAFFIC_KEYS = frozenset(f.name for f in fields(Traffic))
_SHADOW_KEYS = frozenset(f.name for f in fields(ShadowCounts))
_SECRET_NAMES = r"(?:password|passwd|secret|api_?key|access_key|private_key)"
_SECRETS = (
    # The password of a URL, an API key of Palate, and what follows an authorization scheme or the name of a secret
    (re.compile(r"(://[^\s/:@\"']*):[^\s/@\"']+@"), r"\1:***@"),
    (re.compile(r"\bpk_([0-9a-f]+)_[0-9a-f]+"), r"pk_\1_***"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(rf"({_SECRET_NAMES}[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+", re.IGNORECASE), r"\1***"),
)
_SECRET_KEY = re.compile(rf".*{_SECRET_NAMES}", re.IGNORECASE)


def encode_traffic(traffic: Traffic) -> str:
    return to_json(asdict(traffic), "traffic")


def decode_traffic(text: str) -> Traffic:
    """Keys that only a newer version knows are left out."""
    value = {key: v for key, v in orjson.loads(text).items() if key in _TRAFFIC_KEYS}
    return Traffic(**{**value, "warm": tuple(value.get("warm", ()))})


def encode_verdict(live: LiveVerdict) -> str:
    """`rollout` and `at_s` have columns of their own."""
    return to_json({"verdict": verdict_to_json(live.verdict), "shadow": asdict(live.shadow)}, "verdict")


def decode_verdict(app: str, rollout: int, at_s: float, text: str) -> LiveVerdict | None:
    """None for one that this version cannot read."""
    value = orjson.loads(text)
    verdict = verdict_from_json(value.get("verdict"))
    if verdict is None:
        return None
    shadow = {name: count for name, count in value.get("shadow", {}).items() if name in _SHADOW_KEYS}
    return LiveVerdict(app, rollout, at_s, verdict, ShadowCounts(**shadow))


def encode_release(version: ReleaseVersion) -> str:
    """Without its aliases, which move."""
    return to_json(
        {
            "version": version.version,
            "release": manifest.to_json(version.release),
            "tags": dict(version.tags),
            "created_s": version.created_s,
        },
        "releases",
    )


def decode_release(text: str) -> ReleaseVersion:
    """Raises ReleaseRefused for one that this version cannot read."""
    value = orjson.loads(text)
    return ReleaseVersion(
        value["version"], manifest.from_json(value["release"]), tags=value["tags"], created_s=value["created_s"]
    )


def encode_block(block: Block) -> str:
    """Latencies in hundredths of a millisecond; `at_s` has a column of its own. Raises BadInput where the fields do
    not hold one entry per request."""
    check_block(block)
    value: dict[str, Any] = {"l": [round(ms, LATENCY_DIGITS) for ms in block.latencies_ms], "o": block.outcomes}
    if block.tokens:
        value["t"] = block.tokens
    if block.agreed:
        value["g"] = block.agreed
    if block.measures:
        value["m"] = {name: [_rounded(one) for one in column] for name, column in block.measures.items()}
    return to_json(value, "block")


def decode_block(at_s: float, text: str) -> Block:
    value = orjson.loads(text)
    measures = {name: tuple(column) for name, column in value.get("m", {}).items()}
    return Block(at_s, tuple(value["l"]), value["o"], value.get("t", ""), value.get("g", ""), measures)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, MEASURE_DIGITS)


def check_block(block: Block) -> None:
    requests = len(block.latencies_ms)
    entries = {"outcomes": (block.outcomes, 1), "tokens": (block.tokens, TOKEN_CHARS), "agreed": (block.agreed, 1)}
    for name, (text, width) in entries.items():
        if len(text) != requests * width and (text or name == "outcomes"):
            raise BadInput(
                f"{name} holds {len(text)} characters for {requests} requests: give {width} per request", field=name
            )
    for name, column in block.measures.items():
        if len(column) != requests or not all(one is None or 0 <= one < float("inf") for one in column):
            raise BadInput(
                f"measure {name!r} must hold a finite number from 0, or null, for each of {requests} requests",
                field="measures",
            )
    if not all(0 <= ms < float("inf") for ms in block.latencies_ms):
        raise BadInput(
            "latencies_ms holds a value that is no duration: give finite numbers from 0", field="latencies_ms"
        )


def encode_details(details: Mapping[str, Any]) -> str:
    """Numbers that JSON does not have (infinite, not a number) become null."""
    return to_json(_redacted_value(orjson.loads(to_json(details, "details"))), "details")


def decode_details(text: str) -> Mapping[str, Any]:
    value: Mapping[str, Any] = orjson.loads(text)
    return value


def checked_command(command: Command) -> Command:
    """Raises BadInput for a `who` or a `why` that cannot be kept: nothing that a person says is cut silently."""
    if not 0 < len(command.who) <= MAX_WHO_CHARS or not command.who.isprintable():
        raise BadInput(f"who must be 1 to {MAX_WHO_CHARS} printable characters: name yourself shortly", field="who")
    if len(command.why) > MAX_WHY_CHARS or cleaned(command.why) != command.why:
        raise BadInput(f"why must be plain text of at most {MAX_WHY_CHARS} characters: shorten it", field="why")
    return replace(command, who=redacted(command.who), why=redacted(command.why))


def checked_delivery(delivery_id: str) -> str:
    if not 0 < len(delivery_id) <= MAX_ID_CHARS or not delivery_id.isprintable():
        raise BadInput(f"delivery_id must be 1 to {MAX_ID_CHARS} printable characters", field="delivery_id")
    return delivery_id


def checked_limit(limit: int) -> int:
    if limit < 1:
        raise BadInput(f"limit is {limit}: ask for at least 1", field="limit")
    return limit


def clipped_entry(entry: Entry) -> Entry:
    """The machine's own words are shortened, never refused: a long reason must not keep a decision from being
    recorded."""
    return replace(entry, who=clipped(entry.who, MAX_WHO_CHARS), why=clipped(entry.why, MAX_WHY_CHARS))


def clipped_router(report: RouterReport) -> RouterReport:
    return replace(report, problem=clipped(report.problem, MAX_WHY_CHARS))


def clipped_arm(report: ArmReport) -> ArmReport:
    return replace(report, reason=clipped(report.reason, MAX_WHY_CHARS))


def clipped(text: str, most: int) -> str:
    text = redacted(cleaned(text))
    return text if len(text) <= most else text[: most - 1] + "…"


def cleaned(text: str) -> str:
    """Without what a database's text cannot hold: NUL and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def redacted(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _redacted_value(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list):
        return [_redacted_value(v) for v in value]
    if isinstance(value, dict):
        return {k: "***" if v and _SECRET_KEY.match(k) else _redacted_value(v) for k, v in value.items()}
    return value


def to_json(value: Any, field: str) -> str:
    """Raises BadInput that names `field` when a value is not JSON."""
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError as error:  # orjson's JSONEncodeError is one
        raise BadInput(f"{field} cannot be stored as JSON: {error}", field=field) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
