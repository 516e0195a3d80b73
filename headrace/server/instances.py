"""Handlers for the engine processes of a model: their roles, and which are in use. They affect everybody's requests, so where the
server has keys they want an operator's."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.instances.group import InstanceGroup
from headrace.server.hub import Hub
from headrace.server.models import instance_cards
from headrace.server.protocol.instances import DrainRequest, InstanceList, RolesRequest, UndrainRequest
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.served_model import ServedModel


async def list_instances(hub: Hub, call: Call[Any]) -> Response:
    """``GET /instances``: those of one model."""
    return _answer(_model(hub, call, call.query.model))


async def roles(hub: Hub, call: Call[RolesRequest]) -> Response:
    """``POST /instances/roles``: other roles from now on; requests in the wrong place move."""
    model = _model(hub, call, call.body.model)
    _group(model).handoff.change(call.body.roles)
    return _answer(model)


async def drain(hub: Hub, call: Call[DrainRequest]) -> Response:
    """``POST /instances/drain``: answers at once; the instance is ``drained``, or ``gone``, when its requests are elsewhere."""
    model = _model(hub, call, call.body.model)
    _group(model).draining.drain(call.body.instance, stop=bool(call.body.stop))
    return _answer(model)


async def undrain(hub: Hub, call: Call[UndrainRequest]) -> Response:
    """``POST /instances/undrain``: the instance takes requests again, at once or when its process has loaded."""
    model = _model(hub, call, call.body.model)
    _group(model).undrain(call.body.instance)
    return _answer(model)


def _model(hub: Hub, call: Call[Any], name: str | None) -> ServedModel:
    if not hub.tenants.sees_all(call.tenant):
        raise HeadraceError(
            "permission_denied", "Instances are seen and changed with an operator's key (operator=1 in the key file)."
        )
    return hub.table.find(name)


def _group(model: ServedModel) -> InstanceGroup:
    if model.group is None:
        why = "is not in memory" if not model.in_memory else "has one engine process; serve it with --instances 2 or more"
        raise HeadraceError("state_conflict", f"'{model.name}' {why}", param="model")
    return model.group


def _answer(model: ServedModel) -> Response:
    _group(model)
    return json_response(InstanceList(model=model.name, data=instance_cards(model)))
