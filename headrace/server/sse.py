"""Server-sent events: one write a step, comment lines while nothing flows, and an end that is never silent."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from headrace.errors import HeadraceError
from headrace.server.patience import Patience
from headrace.server.rendering import encode_json, error_body, internal_error
from headrace.server.requests import ABORT, GONE, ClientGone, HangupGuard
from headrace.server.settings import ServerSettings

logger = logging.getLogger("headrace.server.sse")

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class StreamDialect:
    """What streams of one API say beside their events: at the end, while nothing flows, and when they fail."""

    done: bytes
    keepalive: bytes
    error: Callable[[HeadraceError], bytes]


OPENAI_STREAM = StreamDialect(DONE, KEEPALIVE, lambda error: b"data: " + error_body(error) + b"\n\n" + DONE)


def event(body: Any) -> bytes:
    """One event holding a struct as JSON."""
    return b"data: " + encode_json(body) + b"\n\n"


class EventStream:
    """An ASGI answer that streams what a source yields, until its dialect's end.

    ``source`` opens a context with an iterator of turns; ``encode`` makes a turn's bytes and ``tail`` the last events.
    Headers wait for the first turn, so that a refusal still gets its own status; if that takes longer than the keep-alive
    time they go out alone. A client that hangs up, or reads nothing for the send time, cancels the source.
    """

    def __init__(
        self,
        source: AbstractAsyncContextManager[AsyncIterator[Any]],
        encode: Callable[[Any], bytes],
        tail: Callable[[], bytes],
        settings: ServerSettings,
        dialect: StreamDialect = OPENAI_STREAM,
    ) -> None:
        self._source = source
        self._encode = encode
        self._tail = tail
        self._settings = settings
        self._dialect = dialect
        self._headers: list[tuple[bytes, bytes]] = list(HEADERS)
        self._started = False

    def header(self, name: str, value: str) -> None:
        """Add a header to the answer."""
        self._headers.append((name.encode("ascii"), value.encode("ascii")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, an error, or the client's leaving."""
        try:
            async with HangupGuard(receive):
                with Patience() as patience:
                    await self._run(send, patience)
        except ClientGone:
            scope[GONE] = True
        except _NotReading:
            logger.info("a client read nothing for %g s and was let go", self._settings.send_timeout)
            scope[GONE] = True
            scope[ABORT]()

    async def _run(self, send: Send, patience: Patience) -> None:
        try:
            async with self._source as turns:
                await self._stream(turns, send, patience)
            last = self._tail() + self._dialect.done
        except HeadraceError as error:
            if not self._started:
                raise
            last = self._dialect.error(error)
        except _NotReading:
            raise
        except Exception:
            if not self._started:
                raise
            logger.exception("a stream failed")
            last = self._dialect.error(internal_error())
        await self._write(send, patience, last, more=False)

    async def _stream(self, turns: AsyncIterator[Any], send: Send, patience: Patience) -> None:
        while True:
            try:
                turn = await patience.wait(anext(turns), self._settings.keepalive)
            except StopAsyncIteration:
                return
            except TimeoutError:
                await self._write(send, patience, self._dialect.keepalive)
                continue
            data = self._encode(turn)
            if data:
                await self._write(send, patience, data)

    async def _write(self, send: Send, patience: Patience, data: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        try:
            await patience.wait(send({"type": "http.response.body", "body": data, "more_body": more}), self._settings.send_timeout)
        except TimeoutError:
            raise _NotReading from None


class _NotReading(Exception):
    """The client's receive window has stayed full."""
