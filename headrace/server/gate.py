"""The outermost layer: request ids, keys, browser defence, one renderer for every refusal, and the request log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import HeadraceError
from headrace.server.auth import OPEN_PATHS, KeyRing, check_browser, check_key, tenant_of
from headrace.server.hub import Hub
from headrace.server.observing.origin import ORIGIN, Origin, origin_of
from headrace.server.observing.spans import Handled
from headrace.server.rendering import STATUS_HUNG_UP, error_response, internal_error
from headrace.server.requests import GONE, TENANT, request_id_of

logger = logging.getLogger("headrace.server")

_UNTRACED = frozenset({"/livez", "/readyz", "/health", "/metrics", "/console/data", "console"})
"""What asks again and again would fill a collector with nothing."""


class Gate:
    """An ASGI layer around the application; nothing gets past it without an id, and nothing leaves it without one."""

    def __init__(self, inner: ASGIApp, hub: Hub, keys: KeyRing | None, open_paths: frozenset[str] = frozenset()) -> None:
        self._inner = inner
        self._settings = hub.settings
        self._keys = keys
        self._open = OPEN_PATHS | open_paths
        self._metrics = hub.metrics
        self._limits = hub.rate_limits
        self._traces = hub.traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope["headrace.request_id"] = request_id
        origin = origin_of(request_id, scope["headers"])
        here = ORIGIN.set(origin)
        answer = _Answer(send, request_id)
        started = time.monotonic()
        try:
            check_key(scope["path"], scope["headers"], self._keys, self._open)
            tenant = scope[TENANT] = tenant_of(scope["headers"]) if self._keys is not None else ""
            answer.late_headers = lambda: self._limits.headers(tenant)
            if self._keys is None:
                check_browser(scope["headers"], self._settings.host)
            await self._inner(scope, receive, answer.send)
        except HeadraceError as error:
            await self._refuse(error, answer, scope, receive)
        except Exception:
            logger.exception("request %s failed", request_id)
            await self._refuse(internal_error(), answer, scope, receive)
        finally:
            ORIGIN.reset(here)
            origin.answered = True
            self._record(scope, STATUS_HUNG_UP if GONE in scope else answer.status, time.monotonic() - started, origin)

    async def _refuse(self, error: HeadraceError, answer: _Answer, scope: Scope, receive: Receive) -> None:
        if answer.started:
            return
        headers = {"connection": "close"} if error.kind.status in (408, 413) else None
        response = error_response(error, headers, scope["path"])
        await response(scope, receive, answer.send)

    def _record(self, scope: Scope, status: int, seconds: float, origin: Origin) -> None:
        route = scope.get("headrace.route", "unknown")
        self._metrics.requests.labels(route, str(status)).inc()
        if self._settings.log_requests:
            fields = {"request_id": origin.request_id, "method": scope["method"], "route": route, "status": status}
            fields |= {"ms": round(seconds * 1e3, 1), "trace_id": origin.trace_id, **_counts(origin)}
            line = "%s %s %s %d %.1f ms", origin.request_id, scope["method"], route, status, seconds * 1e3
            logger.info(*line, extra={"fields": fields})
        if self._traces is not None and route not in _UNTRACED:
            ended = time.time()
            self._traces.add(Handled(origin, scope["method"], route, status, ended - seconds, ended))


def _counts(origin: Origin) -> dict[str, int | str]:
    """What the request's prompts were and got, in tokens."""
    if not origin.lives:
        return {}
    return {
        "model": origin.lives[0].name,
        "tenant": origin.lives[0].label,
        "prompt_tokens": sum(life.prompt_tokens for life in origin.lives),
        "cached_tokens": sum(life.cached_tokens for life in origin.lives),
        "generated_tokens": sum(life.generated_tokens for life in origin.lives),
    }


class _Answer:
    """Sends on, with the request id in the headers, and remembers how it went."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = (b"x-request-id", request_id.encode("ascii"))
        self.late_headers: Callable[[], list[tuple[bytes, bytes]]] = list  # read when the answer begins, not before
        self.started = False
        self.status = STATUS_HUNG_UP

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), self._id, *self.late_headers()]
        await self._send(message)
