"""One line of a batch, run as the call that it describes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.scheduling.item import MOST_PRIORITY
from headrace.server.endpoint import Endpoint
from headrace.server.hub import Hub
from headrace.server.identity import new_id
from headrace.server.protocol.batches import BatchLine, LineResponse
from headrace.server.protocol.decode import decode_body
from headrace.server.protocol.scan import JsonScan
from headrace.server.rate_limits import Claim
from headrace.server.rendering import error_body, internal_error
from headrace.server.requests import Call

logger = logging.getLogger("headrace.server.batches")

PASSING = frozenset({"queue_full", "overloaded", "rate_limit_exceeded", "loading", "draining", "engine_dead", "model_failed"})
"""Refusals that say nothing about the line: it is tried again."""

_NOBODY = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}


@dataclass(frozen=True, slots=True)
class LineRun:
    """Where a line runs: the server, the operation, and the tenant that it runs for."""

    hub: Hub
    endpoint: Endpoint
    tenant: str

    async def answer(self, line: BatchLine) -> LineResponse:
        """Run a line; what a client's call would have been answered. Raises only what is :data:`PASSING`."""
        request_id = new_id("req")
        try:
            response = await self._respond(line, request_id)
        except HeadraceError as error:
            if error.code in PASSING:
                raise
            return LineResponse(error.kind.status, request_id, msgspec.Raw(error_body(error)))
        except Exception:
            logger.exception("request %s failed", request_id)
            return LineResponse(500, request_id, msgspec.Raw(error_body(internal_error())))
        return LineResponse(response.status_code, request_id, msgspec.Raw(bytes(response.body)))

    async def _respond(self, line: BatchLine, request_id: str) -> Response:
        assert self.endpoint.body is not None
        data = bytes(line.body)
        JsonScan(self.hub.settings.max_json_depth).feed(data)
        body = _in_the_background(decode_body(data, self.endpoint.body))
        call: Call[Any] = Call(body, {}, request_id, Request(dict(_NOBODY)), self.tenant, Claim(self.tenant, background=True))
        async with self.hub.use(body.model, body.keep_alive, body.adapters or ()) as service:
            response = await self.endpoint.handler(service, call)
        assert isinstance(response, Response)
        return response


def _in_the_background(body: Any) -> Any:
    """The same body at the lowest priority. Raises ``unsupported_parameter`` for what makes no sense without a client."""
    if getattr(body, "stream", None):
        raise HeadraceError("unsupported_parameter", "'stream' can't be honoured in a batch.", param="stream")
    if body.priority is not None or body.service_tier not in (None, "auto", "default", "flex"):
        name = "priority" if body.priority is not None else "service_tier"
        raise HeadraceError("unsupported_parameter", f"'{name}' can't be honoured in a batch: all lines go last.", param=name)
    return msgspec.structs.replace(body, priority=-MOST_PRIORITY, service_tier=None)
