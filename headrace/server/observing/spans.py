"""Spans of a request in OpenTelemetry's terms (OTLP as JSON): the server's own, and for each prompt of the call its phases."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from headrace.server.observing.life import Life
from headrace.server.observing.origin import Origin

SERVER, INTERNAL = 2, 1
_ERROR = 2


@dataclass(frozen=True, slots=True)
class Handled:
    """A request that has been answered: times in seconds since 1970."""

    origin: Origin
    method: str
    route: str
    status: int
    began: float
    ended: float


def spans_of(handled: Handled) -> list[dict[str, Any]]:
    """The spans of one request, the server's first. Nothing of its text is in them."""
    origin = handled.origin
    attributes = {
        "http.request.method": handled.method, "http.route": handled.route, "http.response.status_code": handled.status,
        "headrace.request_id": origin.request_id,
    }  # fmt: skip
    parent = origin.parent.span_id if origin.parent is not None else ""
    whole = _span(origin.trace_id, parent, f"{handled.method} {handled.route}", (handled.began, handled.ended), attributes)
    whole |= {"spanId": origin.span_id, "kind": SERVER}
    if handled.status >= 500:
        whole["status"] = {"code": _ERROR}
    found = [whole]
    for life in origin.lives:
        found += _life_spans(life, origin, handled.ended)
    return found


def _life_spans(life: Life, origin: Origin, ended: float) -> list[dict[str, Any]]:
    end = life.began + (life.ended if life.ended is not None else max(0.0, ended - life.began))
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "text_completion", "gen_ai.request.model": life.name, "gen_ai.response.model": life.model,
        "gen_ai.request.max_tokens": life.max_tokens, "gen_ai.usage.input_tokens": life.prompt_tokens,
        "gen_ai.usage.output_tokens": life.generated_tokens, "gen_ai.response.finish_reasons": life.finish,
        "headrace.cached_tokens": life.cached_tokens, "headrace.choices": life.choices, "headrace.longest_gap": life.longest_gap,
    }  # fmt: skip
    whole = _span(origin.trace_id, origin.span_id, f"generate {life.name}", (life.began, end), attributes)
    whole["events"] = [
        {"name": "pages given back", "timeUnixNano": _nanos(life.began + at), "attributes": []} for at in life.setbacks
    ]
    found = [whole]
    if life.queued is not None:
        found.append(_span(origin.trace_id, whole["spanId"], "queue", (life.began, life.began + life.queued), {}))
    if life.first is not None:
        first, began = life.began + life.first, life.began + (life.queued or 0.0)
        prefill = {"headrace.rows": life.prompt_tokens - life.cached_tokens}
        found.append(_span(origin.trace_id, whole["spanId"], "prefill", (began, max(began, first)), prefill))
        found.append(_span(origin.trace_id, whole["spanId"], "decode", (first, max(first, end)), {}))
    return found


def _span(trace: str, parent: str, name: str, times: tuple[float, float], attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "traceId": trace, "spanId": secrets.token_hex(8), "parentSpanId": parent, "name": name, "kind": INTERNAL,
        "startTimeUnixNano": _nanos(times[0]), "endTimeUnixNano": _nanos(times[1]),
        "attributes": [{"key": key, "value": _value(value)} for key, value in attributes.items()],
    }  # fmt: skip


def _nanos(seconds: float) -> str:
    return str(int(seconds * 1e9))


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}
