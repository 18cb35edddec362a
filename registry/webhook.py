"""MLflow's webhooks: is a delivery genuine, and is MLflow told to send them.

A webhook makes the controller quick, polling makes it certain: a delivery says only that an app's aliases moved, and
the controller then reads MLflow itself. So nothing in a body is ever acted upon but the app's name.

`verify` is pure; the webhook route of the endpoint calls it and `Journal.nudge`. The controller calls `ensure_webhook`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from registry.config import bound_mlflow_client
from registry.errors import DeliveryRefused, RegistryError, RegistryUnavailable

DELIVERY_ID = "x-mlflow-delivery-id"
TIMESTAMP = "x-mlflow-timestamp"
SIGNATURE = "x-mlflow-signature"
SIGNATURE_VERSION = "v1"

REGISTER_EVERY_S = 300.0
RETRY_S = 2.0

log = logging.getLogger(__name__)

TOLERANCE_S = 300
"""A delivery signed longer ago (or ahead) is refused: it may be a replay. Delivery ids are remembered longer."""

WEBHOOK_PATH = "/v1/webhooks/mlflow"
WEBHOOK_NAME = "palate-aliases"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A genuine delivery. `id` stays the same when MLflow tries again. `version` is None where the alias was deleted;
    `app` is None for an event that is about no alias (MLflow's test delivery, a webhook somebody widened)."""

    id: str
    sent_s: float
    app: str | None
    alias: str | None = None
    version: int | None = None


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Delivery:
    """The delivery that these headers (in any case) and this body are. `now` is Unix time.

    The signature is `v1,` and the base64 of HMAC-SHA256, keyed with the secret's UTF-8 text, over
    `delivery id.timestamp.body`, where the timestamp is the header's (whole Unix seconds), not the body's. It is
    compared in constant time, before the body is looked at. Raises DeliveryRefused that names the header at fault.
    """
    given = {name.lower(): value for name, value in headers.items()}
    for name in (DELIVERY_ID, TIMESTAMP, SIGNATURE):
        if not given.get(name):
            raise DeliveryRefused(f"the header {name} is missing: only MLflow's signed deliveries are taken")
    delivery_id, timestamp = given[DELIVERY_ID], given[TIMESTAMP]
    good = signature(secret, delivery_id, timestamp, body)
    # Several versions may stand in the header, separated by spaces
    if not any(hmac.compare_digest(good.encode(), one.encode()) for one in given[SIGNATURE].split(" ")):
        raise DeliveryRefused(f"the header {SIGNATURE} is wrong: the webhook in MLflow must have this home's secret")
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        raise DeliveryRefused(f"the header {TIMESTAMP} is not a Unix time in seconds")
    if abs(now - int(timestamp)) > TOLERANCE_S:
        raise DeliveryRefused(
            f"the header {TIMESTAMP} is {abs(now - int(timestamp)):.0f} s off: a replay, or a clock that is wrong"
        )
    return _parse(delivery_id, float(timestamp), body)


def signature(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """What MLflow puts into the signature header."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return f"{SIGNATURE_VERSION},{base64.b64encode(digest).decode()}"


def _parse(delivery_id: str, sent_s: float, body: bytes) -> Delivery:
    try:
        event = json.loads(body)
        data = event["data"]
        if event["entity"] != "model_version_alias":
            return Delivery(delivery_id, sent_s, None)
        version = data.get("version")
        return Delivery(
            delivery_id, sent_s, str(data["name"]), str(data["alias"]), None if version is None else int(version)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DeliveryRefused("the body is not an event of MLflow's model registry") from None


def ensure_webhook(tracking_uri: str, url: str, secret: str) -> str:
    """Make MLflow send its alias events to `url`, signed with `secret`; the webhook's id. Safe to repeat.

    MLflow never shows a secret, so one that exists is brought up to date whatever it holds; copies of it (two
    controllers that started together) are deleted. Raises RegistryUnavailable when MLflow cannot be reached,
    RegistryError when it refuses, as it does a private address it was not told to allow.
    """
    bound_mlflow_client()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    try:
        first, *copies = sorted(_ours(client), key=lambda w: (w.creation_timestamp, w.webhook_id)) or [None]
        for copy in copies:
            client.delete_webhook(copy.webhook_id)
        if first is None:
            return str(client.create_webhook(WEBHOOK_NAME, url, list(EVENTS), secret=secret).webhook_id)
        client.update_webhook(first.webhook_id, url=url, events=list(EVENTS), secret=secret, status="ACTIVE")
        return str(first.webhook_id)
    except (MlflowException, RequestException) as error:
        code = getattr(error, "error_code", "")
        text = " ".join(str(error).split())[:300]
        if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "UNAUTHENTICATED"):
            raise RegistryError(
                f"MLflow at {tracking_uri} takes no webhook for {url} (polling goes on): {text}; a private address "
                "needs MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true and MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https there"
            ) from error
        raise RegistryUnavailable(f"MLflow at {tracking_uri} is out of reach or failing: {text}") from error


def _ours(client: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.list_webhooks(max_results=100, page_token=token)
        found += [webhook for webhook in page if webhook.name == WEBHOOK_NAME]
        token = page.token
        if not token:
            return found


def keep_webhook(
    ensure: Callable[[], object], stop: threading.Event, *, every_s: float = REGISTER_EVERY_S, retry_s: float = RETRY_S
) -> threading.Thread:
    """Call `ensure` in a thread until `stop` is set: soon again, with growing pauses, while it fails, and now and then
    when it is well, for an MLflow that lost its webhooks."""

    def keep() -> None:
        pause_s, said = retry_s, ""
        while not stop.is_set():
            try:
                ensure()
            except RegistryError as error:
                if str(error) != said:
                    log.warning("webhook.not_registered", extra={"fields": {"detail": str(error)}})
                said = str(error)
                stop.wait(pause_s)
                pause_s = min(2 * pause_s, every_s)
            else:
                pause_s, said = retry_s, ""
                stop.wait(every_s)

    thread = threading.Thread(target=keep, name="webhook", daemon=True)
    thread.start()
    return thread
