"""Completes /openapi.json: request bodies (validated by hand on the hot path), problems and the key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from registry.webhook import WEBHOOK_PATH
from serving.ingress.models import (
    DeleteRequest,
    EmbeddingsRequest,
    FeedbackRequest,
    ItemsRequest,
    Problem,
    QueryRequest,
)
from serving.ingress.openai_models import ChatRequest, CompletionRequest, OpenaiError
from serving.ingress.problems import OPENAI_PATHS
from serving.ingress.rollout_docs import RolloutRequest

BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("/v1/apps/{app}/query", "post"): QueryRequest,
    ("/v1/apps/{app}/feedback", "post"): FeedbackRequest,
    ("/v1/apps/{app}/items", "put"): ItemsRequest,
    ("/v1/apps/{app}/items", "delete"): DeleteRequest,
    ("/v1/embeddings", "post"): EmbeddingsRequest,
    ("/v1/chat/completions", "post"): ChatRequest,
    ("/v1/completions", "post"): CompletionRequest,
    ("/v1/apps/{app}/rollout", "post"): RolloutRequest,
}
_IDS = {"type": "array", "items": {"type": "string"}}
PARAMETERS: dict[tuple[str, str], dict[str, tuple[dict[str, Any], str]]] = {
    ("/v1/apps/{app}/items", "get"): {
        "limit": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Most items of the page."),
        "cursor": ({"type": "string"}, "`next_cursor` of the page before."),
        "id": (_IDS, "Only these items; repeatable."),
    },
    ("/v1/apps/{app}/items", "delete"): {"id": (_IDS, "Items to delete, in place of a body; repeatable.")},
    ("/v1/apps/{app}/rollouts", "get"): {
        "limit": ({"type": "integer", "minimum": 1, "maximum": 500, "default": 20}, "How many, newest first."),
    },
}
"""Query parameters that routes read from the request: name -> (schema, description)."""

OPEN = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{app}/ready",
    WEBHOOK_PATH,
)
"""Routes that take no key; the webhook is signed instead."""


def install(api: FastAPI) -> None:
    def build() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = complete(
                get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
            )
        return api.openapi_schema

    api.openapi = build  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add to a document of FastAPI's what it cannot see."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models: list[type[BaseModel]] = [*BODIES.values(), Problem, OpenaiError]
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path not in OPEN:
                operation["security"] = [{"key": []}]
            if body := BODIES.get((path, method)):
                content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
                operation["requestBody"] = {"required": method != "delete", "content": content}
            for name, (schema, text) in PARAMETERS.get((path, method), {}).items():
                parameter = {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
                operation.setdefault("parameters", []).append(parameter)
            operation["responses"].pop("422", None)
            model, kind = (OpenaiError, "json") if path in OPENAI_PATHS else (Problem, "problem+json")
            problem = {"$ref": f"#/components/schemas/{model.__name__}"}
            operation["responses"]["default"] = {
                "description": "A problem: what to change, or when to try again.",
                "content": {f"application/{kind}": {"schema": problem}},
            }
    return document
