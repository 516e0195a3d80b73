"""Handlers for the models themselves: their list, their state, into memory and out of it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.responses import Response

from headrace.server.adapter_choice import choose
from headrace.server.hub import Hub
from headrace.server.protocol.tokens import InstanceCard, LoadRequest, ModelCard, ModelList, UnloadRequest
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.served_model import ServedModel


async def list_models(hub: Hub, call: Call[Any]) -> Response:
    """``GET /models``: the models, and behind them their adapters."""
    adapters = [card for model in hub.table for card in await hub.adapter_cards.of(model)]
    return json_response(ModelList(data=[_card(hub, model) for model in hub.table] + adapters))


async def show_model(hub: Hub, call: Call[Any]) -> Response:
    """``GET /models/{id}``: a model or an adapter."""
    name = call.path["id"]
    if hub.table.get(name) is None:
        await hub.adapter_watch.first_look.wait()
        adapter = choose(hub.table, hub.adapters, name, ()).adapters[0][0]
        return json_response(await hub.adapter_cards.card(adapter))
    return json_response(_card(hub, hub.table.find(name)))


async def load(hub: Hub, call: Call[LoadRequest]) -> Response:
    """``POST /models/load``: answers when the model is in memory; at once when it is there already."""
    async with hub.use(call.body.model, call.body.keep_alive):
        pass
    return json_response(_card(hub, hub.table.find(call.body.model)))


async def unload(hub: Hub, call: Call[UnloadRequest]) -> Response:
    """``POST /models/unload``: answers when the model's requests have ended and its memory is given back."""
    model = hub.table.find(call.body.model)
    await hub.table.unload(model)
    return json_response(_card(hub, model))


def _card(hub: Hub, model: ServedModel) -> ModelCard:
    idle = model.state == "hot" and not model.users
    return ModelCard(
        id=model.name,
        created=hub.started,
        root=model.entry.root,
        max_model_len=model.context_length,
        state=model.state,
        error=model.error.message if model.error is not None else None,
        pinned=model.pinned,
        in_use=model.users + model.waiting,
        idle_seconds=round(time.monotonic() - model.last_used, 3) if idle else None,
        memory_bytes=model.need.total if model.need is not None and model.in_memory else 0,
        instances=instance_cards(model) if model.group is not None else msgspec.UNSET,
    )


def instance_cards(model: ServedModel) -> list[InstanceCard]:
    """The engine processes of a model that has several."""
    return [
        InstanceCard(
            number=one.number, state=one.state, pid=one.pid, threads=one.threads, requests=one.requests,
            running=one.gauges.running, waiting=one.gauges.waiting,
            pages_free=one.gauges.pages_free, pages_total=one.gauges.pages_total, crashes=one.crashes,
            role=one.role,
        )
        for one in (model.group.statuses() if model.group is not None else ())
    ]  # fmt: skip
