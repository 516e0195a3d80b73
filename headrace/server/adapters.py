"""Handlers for adapters: into a running server and out of it."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.server.adapter_choice import base_of
from headrace.server.adapter_roots import base_model_of
from headrace.server.adapter_table import ServedAdapter, Wanted
from headrace.server.hub import Hub
from headrace.server.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from headrace.server.rendering import json_response
from headrace.server.requests import Call


async def load(hub: Hub, call: Call[LoadAdapterRequest]) -> Response:
    """``POST /load_lora_adapter``: answers with the adapter's card when its files have been checked."""
    adapter = await hub.adapters.to_the_end(_load(hub, call.body))
    return json_response(await hub.adapter_cards.card(adapter))


async def unload(hub: Hub, call: Call[UnloadAdapterRequest]) -> Response:
    """``POST /unload_lora_adapter``: answers with the card as it was. Requests under way keep their adapter."""
    await hub.adapter_watch.first_look.wait()
    body = call.body
    adapter = hub.adapters.find(body.lora_name, hub.table.find(body.model) if body.model is not None else None)
    card = await hub.adapter_cards.card(adapter)
    await hub.adapters.to_the_end(hub.adapters.remove(adapter, body.expected_generation))
    return json_response(msgspec.structs.replace(card, state="removed"))


async def _load(hub: Hub, body: LoadAdapterRequest) -> ServedAdapter:
    hub.adapters.check_name(body.lora_name)
    named = hub.table.find(body.model) if body.model is not None else None
    place = await asyncio.to_thread(hub.adapter_roots.find, body.lora_path)
    await hub.adapter_watch.first_look.wait()
    model = named or base_of(hub.table, await asyncio.to_thread(base_model_of, place.folder))
    wanted = Wanted(body.lora_name, model, place, bool(body.pin), body.expected_generation or 0)
    hub.adapters.check_expected(wanted)
    loaded = await hub.table.use(model)
    try:
        return await hub.adapters.add(wanted, loaded.engine)
    except HeadraceError as error:
        if error.param is None:
            raise HeadraceError(error.code, error.message, param="lora_path") from None
        raise
    finally:
        hub.table.release(model)
