"""GET, PUT and DELETE /v1/apps/{app}/items: the catalogue, durable in SQL before it is acknowledged."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serving.components.catalogue import check_item
from serving.errors import BadRequest, TooLarge
from serving.ingress.access import admit, read_body, services_of
from serving.ingress.models import DeleteRequest, ItemsRequest, parse
from serving.ingress.problems import trace_id_of
from serving.schema import Item

routes = APIRouter()


@routes.get("/v1/apps/{app}/items", response_class=Response, tags=["items"])
async def list_items(app: str, request: Request) -> Response:
    """Items in id order, `limit` (1..1000, default 100) at a time from `cursor` on; `id` (repeatable) picks some."""
    services = services_of(request)
    await admit(request, "items", app)
    services.router.served(app)
    if wanted := request.query_params.getlist("id"):
        _refuse_more(len(wanted), services.config.limits.max_items, "id")
        found = await asyncio.to_thread(services.items.get, app, wanted)
        items, cursor = [item for item in found if item is not None], None
    else:
        limit = _limit(request.query_params.get("limit"), services.config.limits.max_items)
        items, cursor = await asyncio.to_thread(
            services.items.page, app, limit, request.query_params.get("cursor") or None
        )
    return _json(request, {"items": [_item_json(item) for item in items], "next_cursor": cursor})


@routes.put("/v1/apps/{app}/items", response_class=Response, tags=["items"])
async def put_items(app: str, request: Request) -> Response:
    """Insert or replace items; visible to queries in every replica within seconds."""
    services = services_of(request)
    await admit(request, "items", app)
    spec = services.router.served(app).spec
    wanted = parse(ItemsRequest, await read_body(request))
    _refuse_more(len(wanted.items), services.config.limits.max_items, "items")
    items = [Item(i.id, i.fields, i.attributes) for i in wanted.items]
    for item in items:
        check_item(item, spec)
    seq = await asyncio.to_thread(services.items.upsert, app, items)
    return _json(request, {"upserted": len(items), "sequence": seq})


@routes.delete("/v1/apps/{app}/items", response_class=Response, tags=["items"])
async def delete_items(app: str, request: Request) -> Response:
    """Delete items by id, from `{"ids": [...]}` or `?id=`; an id that is not there is ignored."""
    services = services_of(request)
    await admit(request, "items", app)
    services.router.served(app)
    ids = request.query_params.getlist("id") or parse(DeleteRequest, await read_body(request)).ids
    _refuse_more(len(ids), services.config.limits.max_items, "ids")
    seq = await asyncio.to_thread(services.items.delete, app, ids)
    return _json(request, {"deleted": len(ids), "sequence": seq})


def _refuse_more(count: int, limit: int, field: str) -> None:
    if count > limit:
        raise TooLarge(f"{count} {field}; at most {limit} are taken at once", field=field)


def _limit(text: str | None, most: int) -> int:
    if text is None:
        return min(100, most)
    # Digits that int() takes, and no more of them than any limit has.
    if not (text.isascii() and text.isdigit() and len(text) < 10) or not 1 <= int(text) <= most:
        raise BadRequest(f"limit must be a whole number from 1 to {most}, not {text!r}", field="limit")
    return int(text)


def _item_json(item: Item) -> dict[str, Any]:
    return {"id": item.id, "fields": dict(item.fields), "attributes": dict(item.attributes)}


def _json(request: Request, body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), headers={"x-trace-id": trace_id_of(request)}, media_type="application/json")
