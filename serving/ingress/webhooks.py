"""POST /v1/webhooks/mlflow: MLflow says that somebody moved an alias. The signature is the key.

It makes the controller look at once; what it then does, it reads from MLflow. So a forged, repeated or lost delivery
can do nothing but cost a look.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from registry.errors import DeliveryRefused
from registry.webhook import WEBHOOK_PATH, verify
from serving.errors import NotFound, Unauthorized
from serving.ingress.access import read_body, services_of
from serving.ingress.problems import trace_id_of
from serving.ingress.rollouts import in_thread
from serving.logs import get_log

routes = APIRouter()
log = get_log(__name__)

MAX_BODY_BYTES = 64 * 1024
"""MLflow's events have some hundred bytes."""


@routes.post(WEBHOOK_PATH, status_code=204, response_class=Response, tags=["rollouts"])
async def mlflow(request: Request) -> Response:
    """A signed delivery of MLflow's registry. 204 also for what concerns no app here, and for one that came before."""
    services = services_of(request)
    secret = services.steering.webhook_secret
    if secret is None:
        raise NotFound("no webhooks are taken here: polling finds what moved; set up a secret to be told at once")
    body = await read_body(request, MAX_BODY_BYTES)
    now = services.wall_clock()
    try:
        delivery = verify(secret, request.headers, body, now)
    except DeliveryRefused as error:
        raise Unauthorized(str(error)) from None
    app = delivery.app
    if app is not None and app in services.router.apps():
        fresh = await in_thread(lambda: services.steering.journal.nudge(app, delivery.id, now))
        log.info("webhook", app=app, alias=delivery.alias, release=delivery.version, delivery=delivery.id, fresh=fresh)
    return Response(status_code=204, headers={"x-trace-id": trace_id_of(request)})
