"""Handlers of batches: create, list, look at, cancel."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from headrace.server.hub import Hub
from headrace.server.paging import page
from headrace.server.protocol.batches import BatchList, BatchRequest, PageQuery
from headrace.server.rendering import json_response
from headrace.server.requests import Call

PAGE = 20
"""Objects of a page when the client does not say."""


async def create(hub: Hub, call: Call[BatchRequest]) -> Response:
    """``POST /batches``."""
    return json_response((await hub.desk().batches.create(call.body, call.tenant)).shown)


async def list_batches(hub: Hub, call: Call[Any]) -> Response:
    """``GET /batches``."""
    query: PageQuery = call.query
    found, more = page([batch.shown for batch in hub.desk().batches.of(call.tenant)], query.after, query.limit or PAGE)
    ends = (found[0].id, found[-1].id) if found else (None, None)
    return json_response(BatchList(found, more, *ends))


async def show(hub: Hub, call: Call[Any]) -> Response:
    """``GET /batches/{id}``."""
    return json_response(hub.desk().batches.find(call.path["id"], call.tenant).shown)


async def cancel(hub: Hub, call: Call[Any]) -> Response:
    """``POST /batches/{id}/cancel``."""
    return json_response((await hub.desk().batches.cancel(call.path["id"], call.tenant)).shown)
