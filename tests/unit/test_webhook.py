"""Which deliveries are taken for MLflow's, and how long the registration is tried."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import pytest

from registry.errors import DeliveryRefused, RegistryUnavailable
from registry.webhook import TOLERANCE_S, Delivery, keep_webhook, signature, verify
from tests.waiting import wait_for

SECRET = "made-up-secret"
NOW = 1_790_000_000.4
CREATED = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-09-21T00:00:00+00:00",
    "data": {"name": "wines", "alias": "canary", "version": "5"},
}


@dataclass
class Sent:
    """A delivery as MLflow sends it, to be spoilt by a test."""

    body: bytes = json.dumps(CREATED).encode()
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signed = signature(SECRET, "d-1", "1790000000", self.body)
        self.headers = {
            "Content-Type": "application/json",
            "X-MLflow-Delivery-Id": "d-1",
            "X-MLflow-Timestamp": "1790000000",
            "X-MLflow-Signature": signed,
        }


def test_a_genuine_delivery_says_which_alias_moved() -> None:
    sent = Sent()
    assert verify(SECRET, sent.headers, sent.body, NOW) == Delivery("d-1", 1_790_000_000, "wines", "canary", 5)


def test_the_signature_is_the_documented_one() -> None:
    # HMAC-SHA256 of "d-1.1790000000.{}" under "made-up-secret", computed with openssl
    assert signature(SECRET, "d-1", "1790000000", b"{}") == "v1,flGh/7n9AvO4/zOOnJXVr8TsxQfF1bfT7aj299xvsPU="


def test_a_deleted_alias_has_no_version() -> None:
    sent = Sent(json.dumps({**CREATED, "action": "deleted", "data": {"name": "wines", "alias": "canary"}}).encode())
    assert verify(SECRET, sent.headers, sent.body, NOW) == Delivery("d-1", 1_790_000_000, "wines", "canary", None)


def test_another_event_names_no_app() -> None:
    sent = Sent(json.dumps({**CREATED, "entity": "registered_model", "data": {"name": "wines"}}).encode())
    assert verify(SECRET, sent.headers, sent.body, NOW).app is None


def test_headers_count_in_any_case_and_one_good_signature_is_enough() -> None:
    sent = Sent()
    headers = {name.upper(): value for name, value in sent.headers.items()}
    headers["X-MLFLOW-SIGNATURE"] = "v1,b2xk " + headers["X-MLFLOW-SIGNATURE"]
    assert verify(SECRET, headers, sent.body, NOW).app == "wines"


@pytest.mark.parametrize("name", ["X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_header_is_named(name: str, value: str | None) -> None:
    sent = Sent()
    if value is None:
        del sent.headers[name]
    else:
        sent.headers[name] = value
    with pytest.raises(DeliveryRefused, match=name.lower()):
        verify(SECRET, sent.headers, sent.body, NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-MLflow-Delivery-Id", "d-2"),
        ("X-MLflow-Timestamp", "1790000001"),
        ("X-MLflow-Signature", "v1,AAAA"),
        ("X-MLflow-Signature", "v1,é"),
    ],
)
def test_whatever_is_changed_breaks_the_signature(name: str, value: str) -> None:
    sent = Sent()
    sent.headers[name] = value
    with pytest.raises(DeliveryRefused, match="signature"):
        verify(SECRET, sent.headers, sent.body, NOW)


def test_a_changed_body_and_another_secret_break_the_signature() -> None:
    sent = Sent()
    with pytest.raises(DeliveryRefused, match="signature"):
        verify(SECRET, sent.headers, sent.body.replace(b"canary", b"stable"), NOW)
    with pytest.raises(DeliveryRefused, match="signature"):
        verify("another", sent.headers, sent.body, NOW)


@pytest.mark.parametrize("off_s", [-TOLERANCE_S - 2, TOLERANCE_S + 2])
def test_a_replay_is_refused(off_s: float) -> None:
    sent = Sent()
    with pytest.raises(DeliveryRefused, match="timestamp"):
        verify(SECRET, sent.headers, sent.body, NOW + off_s)
    assert verify(SECRET, sent.headers, sent.body, NOW + off_s * 0.98).app == "wines"


@pytest.mark.parametrize("stamp", ["soon", "-5", "1e9", "١٧٩٠٠٠٠٠٠٠"])
def test_a_signed_timestamp_that_is_none_is_refused(stamp: str) -> None:
    sent = Sent()
    sent.headers["X-MLflow-Timestamp"] = stamp
    sent.headers["X-MLflow-Signature"] = signature(SECRET, "d-1", stamp, sent.body)
    with pytest.raises(DeliveryRefused, match="timestamp"):
        verify(SECRET, sent.headers, sent.body, NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"entity": "model_version_alias", "data": {}}', b"\xff"])
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    sent = Sent(body)
    with pytest.raises(DeliveryRefused, match="body"):
        verify(SECRET, sent.headers, body, NOW)


def test_the_registration_is_tried_until_it_holds() -> None:
    stop, calls = threading.Event(), []

    def ensure() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RegistryUnavailable("MLflow is away")

    thread = keep_webhook(ensure, stop, every_s=60, retry_s=0.01)
    wait_for(lambda: len(calls) == 3, 10, "the third try")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(calls) == 3
