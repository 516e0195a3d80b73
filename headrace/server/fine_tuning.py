"""Handlers of fine-tuning jobs: create, list, look at, events, checkpoints, pause, resume, cancel."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from headrace.server.batches import PAGE
from headrace.server.hub import Hub
from headrace.server.paging import page
from headrace.server.protocol.tuning import CheckpointList, EventList, JobList, JobQuery, JobRequest, ModelDeleted
from headrace.server.rendering import json_response
from headrace.server.requests import Call


async def create(hub: Hub, call: Call[JobRequest]) -> Response:
    """``POST /fine_tuning/jobs``."""
    return json_response((await hub.desk().tuning.create(call.body, call.tenant)).shown)


async def list_jobs(hub: Hub, call: Call[Any]) -> Response:
    """``GET /fine_tuning/jobs``."""
    query: JobQuery = call.query
    found, more = page([job.shown for job in hub.desk().tuning.of(call.tenant)], query.after, query.limit or PAGE)
    return json_response(JobList(found, more))


async def show(hub: Hub, call: Call[Any]) -> Response:
    """``GET /fine_tuning/jobs/{id}``."""
    return json_response(hub.desk().tuning.find(call.path["id"], call.tenant).shown)


async def events(hub: Hub, call: Call[Any]) -> Response:
    """``GET /fine_tuning/jobs/{id}/events``."""
    desk = hub.desk().tuning
    job = desk.find(call.path["id"], call.tenant)
    query: JobQuery = call.query
    return json_response(EventList(*page(await desk.history(job).events(), query.after, query.limit or PAGE)))


async def checkpoints(hub: Hub, call: Call[Any]) -> Response:
    """``GET /fine_tuning/jobs/{id}/checkpoints``."""
    job = hub.desk().tuning.find(call.path["id"], call.tenant)
    query: JobQuery = call.query
    newest = sorted(job.checkpoints, key=lambda one: one.step_number, reverse=True)
    found, more = page(newest, query.after, query.limit or 10)
    ends = (found[0].id, found[-1].id) if found else (None, None)
    return json_response(CheckpointList(found, more, *ends))


async def delete_model(hub: Hub, call: Call[Any]) -> Response:
    """``DELETE /models/{id}``: a model that a job has made. Requests under way keep it."""
    await hub.desk().tuning.forget_model(call.path["id"], call.tenant)
    return json_response(ModelDeleted(call.path["id"]))


async def pause(hub: Hub, call: Call[Any]) -> Response:
    """``POST /fine_tuning/jobs/{id}/pause``."""
    return json_response((await hub.desk().tuning.command(call.path["id"], call.tenant, "pause")).shown)


async def resume(hub: Hub, call: Call[Any]) -> Response:
    """``POST /fine_tuning/jobs/{id}/resume``."""
    return json_response((await hub.desk().tuning.command(call.path["id"], call.tenant, "resume")).shown)


async def cancel(hub: Hub, call: Call[Any]) -> Response:
    """``POST /fine_tuning/jobs/{id}/cancel``."""
    return json_response((await hub.desk().tuning.command(call.path["id"], call.tenant, "cancel")).shown)
