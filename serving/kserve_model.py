"""KServe's model server around the release that `serving.kserve_server` prepared: protocol v2, by kserve's own code.

Imported by `palate kserve-server` alone: kserve reads the command line and makes its HTTP app when it is imported. The
OpenAI protocol is the ingress's own, under `/openai` as well: kserve's classes for it import vLLM, and a container that
embeds would wait for that for half a minute.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import kserve
import orjson
from fastapi import FastAPI, Request
from kserve import model_server
from starlette.types import Message, Scope

from serving.config import ServingConfig
from serving.errors import BadRequest
from serving.ingress import Services, tensors
from serving.ingress.inference_v2 import ask
from serving.inline import tune_interpreter
from serving.kserve_server import build_pinned, find_release, install
from serving.logs import configure_logs, get_log
from serving.stores import open_stores

log = get_log(__name__)


class ReleaseModel(kserve.Model):  # type: ignore[misc]  # kserve has no types
    """The app as a model of kserve's server. Ready means: its release has answered a real query."""

    def __init__(self, app: str, api: FastAPI, services: Services) -> None:
        super().__init__(app, return_response_headers=True)
        self._api = api
        self._services = services
        self.ready = True  # registered at once; `healthy` is what probes ask

    async def healthy(self) -> bool:
        return self._services.router.apps()[self.name] is not None

    def get_input_types(self) -> list[dict[str, Any]]:
        return tensors.inputs_taken()

    def get_output_types(self) -> list[dict[str, Any]]:
        return tensors.outputs_given()

    async def predict(
        self, payload: Any, headers: Mapping[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> Any:
        """kserve's InferRequest -> its InferResponse, through the query route. Raises PalateError."""
        if not isinstance(payload, kserve.InferRequest):
            raise BadRequest(f"this server speaks the protocol v2: POST /v2/models/{self.name}/infer")
        parameters = dict(payload.parameters or {})
        asked = payload.request_outputs or []
        wanted = tensors.checked(
            payload.id or "",
            [(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in payload.inputs],
            parameters,
            {output.name: bool(output.binary_data) for output in asked}
            or dict.fromkeys(tensors.DEFAULT_OUTPUTS, False),
        )
        answered = await ask(self.name, self._request(headers or {}), lambda _: wanted)
        answer = orjson.loads(answered.body)
        if response_headers is not None:
            response_headers["x-trace-id"] = answer["trace_id"]
        return kserve.InferResponse(
            wanted.id or answer["trace_id"],
            self.name,
            [
                kserve.InferOutput(tensor.name, tensor.shape, tensor.datatype, tensor.data)
                for tensor in tensors.tensors(answer, wanted.outputs)
            ],
            model_version=answer["release"],
            parameters={"trace_id": answer["trace_id"]},
            use_binary_outputs=bool(parameters.get(tensors.BINARY_OUTPUT, False)),
            requested_outputs=asked,
        )

    def _request(self, headers: Mapping[str, str]) -> Request:
        """A request to the query route; kserve has read the body."""
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": f"/v2/models/{self.name}/infer",
            "query_string": b"",
            "headers": [
                (name.lower().encode("latin-1"), text.encode("latin-1"))
                for name, text in headers.items()
                if name.lower() != "content-length"
            ],
            "app": self._api,
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        return Request(scope, receive)


def run_server(config: ServingConfig, app: str, named: str, port: int, drain_s: int) -> None:
    """Serve a version or an alias of the app until SIGTERM, and what is in flight then for `drain_s` more. Raises
    PalateError or RegistryError for what is set up wrongly."""
    configure_logs(config.log)
    tune_interpreter()
    stores = open_stores(config)
    version = find_release(app, named, stores.board, stores.releases)
    services, followed = build_pinned(config, stores, version)
    api = model_server.app
    install(api, services, followed)
    log.info("kserve.starts", app=app, release=version.version, port=port)
    # kserve looks for models of its OpenAI classes, with vLLM's import, unless these cannot be imported
    sys.modules["kserve.protocol.rest.openai.config"] = None  # type: ignore[assignment]  # Python's way to say so
    server = model_server.ModelServer(
        http_port=port, enable_grpc=False, workers=1, enable_latency_logging=False, grace_period=drain_s
    )
    # kserve's handler ends nothing here, and until uvicorn has its own it would swallow SIGTERM
    server.register_signal_handler = lambda: None
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)  # a line for each request
    server.start([ReleaseModel(app, api, services)])
