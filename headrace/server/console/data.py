"""Handlers of the console's data: what is known anyway, and steps from the moment somebody looks."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

import headrace
from headrace.server.console.doctor import live_findings
from headrace.server.hub import Hub
from headrace.server.observing.journal import NumberedStep
from headrace.server.observing.life import Life
from headrace.server.observing.windows import LEAST_SECONDS, PER_DECADE, WINDOW_SECONDS
from headrace.server.protocol.console import (
    ConsoleData,
    ConsoleQuery,
    Findings,
    Latencies,
    ModelNow,
    RequestNow,
    StepNow,
    WindowNow,
)
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.served_model import ServedModel

WATCH_SECONDS = 5.0
"""Engines report steps for so long after somebody looked."""
MOST_STEPS = 1500
_NO_STORE = {"cache-control": "no-store"}


async def data(hub: Hub, call: Call[Any]) -> Response:
    """``GET /console/data``: the state now."""
    wanted: ConsoleQuery = call.query
    since = wanted.since or 0
    journal = hub.metrics.journal
    if wanted.steps:
        for model in hub.table:
            journal.note_steps(model.name, model.watched(WATCH_SECONDS))
    steps = journal.steps(since, MOST_STEPS) if wanted.steps else []
    own_only = not hub.tenants.sees_all(call.tenant)
    lives = [life for life in journal.lives() if not own_only or life.tenant == call.tenant]
    shift = time.time() - time.monotonic()
    answer = ConsoleData(
        now=time.time(), started=hub.started, version=headrace.__version__, draining=hub.draining,
        loop_lag_seconds=hub.lag.worst(), own_only=own_only, models=[_model(model) for model in hub.table],
        cursor=steps[-1].number if steps else since, steps=[_step(step, shift) for step in steps],
        latencies=_latencies(hub) if wanted.latencies else None,
        requests=[_request(life) for life in lives[: wanted.requests or 0]],
    )  # fmt: skip
    return json_response(answer, headers=_NO_STORE)


async def doctor(hub: Hub, call: Call[Any]) -> Response:
    """``GET /console/doctor``: findings about the server and its machine."""
    return json_response(Findings(live_findings(hub), await hub.doctor.findings()), headers=_NO_STORE)


def _model(model: ServedModel) -> ModelNow:
    return ModelNow(
        model.name, model.state, model.users, model.waiting,
        model.need.total if model.need is not None and model.in_memory else 0, model.context_length,
        model.loaded.ready.page_tokens if model.loaded is not None else 0, model.gauges(),
    )  # fmt: skip


def _step(step: NumberedStep, shift: float) -> StepNow:
    report = step.report
    return StepNow(
        step.number, step.model, round(report.began + shift, 4), round(report.seconds * 1e3, 3),
        round(report.model_seconds * 1e3, 3), round(report.predicted * 1e3, 3), report.rows, report.sequences, report.waiting,
    )  # fmt: skip


def _latencies(hub: Hub) -> Latencies:
    windows = [WindowNow(window.at, window.first, window.gap) for window in hub.metrics.windows.read()]
    return Latencies(LEAST_SECONDS, PER_DECADE, WINDOW_SECONDS, windows)


def _request(life: Life) -> RequestNow:
    return RequestNow(
        life.request_id, life.model, life.name, life.label, life.began, life.prompt_tokens, life.cached_tokens,
        life.generated_tokens, life.choices, life.max_tokens, life.queued, life.first, life.last, life.ended, life.longest_gap,
        life.finish, life.chunks, life.setbacks,
    )  # fmt: skip
