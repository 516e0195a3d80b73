"""Routes for operators: probes, metrics, version."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

import headrace
from headrace.server.hub import Hub
from headrace.server.process_memory import process_memory
from headrace.server.rendering import json_response
from headrace.server.requests import Call


class Health(msgspec.Struct, frozen=True):
    """State of the server. ``instances``: by model, those of its engine processes that serve, of how many."""

    status: str
    instances: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Version(msgspec.Struct, frozen=True):
    """Which release this is."""

    version: str


async def livez(hub: Hub, call: Call[Any]) -> Response:
    """The process answers; no key needed."""
    return json_response(Health("ok"))


async def readyz(hub: Hub, call: Call[Any]) -> Response:
    """200 when a request would be served now; 503 while loading, draining, or after the engine's death."""
    hub.check_ready()
    groups = {model.name: model.group.statuses() for model in hub.table if model.group is not None}
    serving = {name: f"{sum(one.state == 'serving' for one in each)} of {len(each)}" for name, each in groups.items()}
    return json_response(Health("ok", serving or msgspec.UNSET))


async def metrics(hub: Hub, call: Call[Any]) -> Response:
    """Prometheus text page."""
    memory = await asyncio.to_thread(process_memory)  # the system walks all pages: milliseconds
    return Response(hub.metrics.page(memory), headers={"content-type": CONTENT_TYPE_LATEST})


async def version(hub: Hub, call: Call[Any]) -> Response:
    """Release of the server."""
    return json_response(Version(headrace.__version__))
