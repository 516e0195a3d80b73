"""uvicorn's HTTP protocol with bounds that it lacks: size and time of a request's headers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.errors import HeadraceError
from headrace.server.rendering import error_body, table_error
from headrace.server.requests import ABORT

MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 128
HEADER_SECONDS = 15.0
"""From connection (or the first byte of a further request) to the end of the headers."""

_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class ApiServer(uvicorn.Server):
    """uvicorn with signals left to :class:`~headrace.server.process.Runner`, which drains while still answering."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


class _HeadersTooLarge(Exception):
    """Stops the parser at the end of the headers."""


class GuardedProtocol(HttpToolsProtocol):
    """Refuses header floods with 431 and closes connections whose headers dribble in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request's headers."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives before the headers are complete; parsed pieces are counted by :meth:`on_header`."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._header_timer is None:
                self._arm()
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A further request on the same connection begins."""
        super().on_message_begin()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Let the request in when its headers are within bounds."""
        self._disarm()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._head_bytes = size
        if size > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._head_bytes = MAX_HEADER_BYTES + 1
            raise _HeadersTooLarge
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no acceptable request, in the dialect of every other refusal, and close."""
        too_large = self._head_bytes > MAX_HEADER_BYTES
        error = table_error("headers_too_large") if too_large else HeadraceError("invalid_value", "The request is not valid HTTP.")
        body = error_body(error)
        status = error.kind.status
        head = b"HTTP/1.1 %d %b\r\nx-request-id: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        head %= status, _REASONS[status], secrets.token_hex(16).encode(), len(body)
        self.transport.write(head + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _arm(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._headers_late)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()
