"""The outermost layer: request ids, keys, browser defence, one renderer for every refusal, and the request log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import HeadraceError
from headrace.server.auth import OPEN_PATHS, KeyRing, check_browser, check_key, tenant_of
from headrace.server.hub import Hub
from headrace.server.observing.origin import ORIGIN, origin_of
from headrace.server.rendering import STATUS_HUNG_UP, error_response, internal_error
from headrace.server.requests import GONE, TENANT, request_id_of

logger = logging.getLogger("headrace.server")


class Gate:
    """An ASGI layer around the application; nothing gets past it without an id, and nothing leaves it without one."""

    def __init__(self, inner: ASGIApp, hub: Hub, keys: KeyRing | None, open_paths: frozenset[str] = frozenset()) -> None:
        self._inner = inner
        self._settings = hub.settings
        self._keys = keys
        self._open = OPEN_PATHS | open_paths
        self._metrics = hub.metrics
        self._limits = hub.rate_limits

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
            self._record(scope, STATUS_HUNG_UP if GONE in scope else answer.status, time.monotonic() - started)

    async def _refuse(self, error: HeadraceError, answer: _Answer, scope: Scope, receive: Receive) -> None:
        if answer.started:
            return
        headers = {"connection": "close"} if error.kind.status in (408, 413) else None
        response = error_response(error, headers, scope["path"])
        await response(scope, receive, answer.send)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("headrace.route", "unknown")
        self._metrics.requests.labels(route, str(status)).inc()
        if self._settings.log_requests:
            logger.info("%s %s %s %d %.1f ms", scope["headrace.request_id"], scope["method"], route, status, seconds * 1e3)


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
