"""What a handler knows of its request, and the reading of bodies under limits."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive

from headrace.errors import HeadraceError
from headrace.server.protocol.decode import decode_body
from headrace.server.protocol.scan import JsonScan
from headrace.server.rate_limits import Claim
from headrace.server.settings import ServerSettings

BodyType = TypeVar("BodyType")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Call(Generic[BodyType]):
    """One request as handlers see it: its decoded body, path parameters, id, and the connection (to notice a hang-up).

    ``tenant`` names the API key's owner without saying the key: pages are reused under one name only. ``claim``: what was taken
    of the key's allowance before the body was read. ``query``: what stands behind the path, where the operation knows such fields.
    """

    body: BodyType
    path: Mapping[str, Any]
    request_id: str
    request: Request
    tenant: str = ""
    claim: Claim = field(default_factory=Claim)
    query: Any = None


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's x-request-id when it is short and plain (it goes into logs and headers), else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _SANE_ID.match(text):
                return text
    return secrets.token_hex(16)


def declared_length(request: Request) -> int:
    """Bytes of the body as its header says; 0 when it does not."""
    declared = request.headers.get("content-length", "")
    return int(declared[:20]) if declared.isascii() and declared.isdigit() else 0


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """Read a body of any framing, checking size, JSON depth and patience while it arrives.

    Raises ``body_too_large``, ``body_timeout`` or ``invalid_value`` as soon as the limit is passed.
    """
    limit = settings.max_body_kib * 1024
    if declared_length(request) > limit:
        raise _too_large(settings)
    scan = JsonScan(settings.max_json_depth)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece: bytes = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise _too_large(settings)
                scan.feed(piece)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)
                if len(piece) > 1 << 16:
                    await asyncio.sleep(0)
    except TimeoutError:
        raise HeadraceError("body_timeout", f"The body did not arrive within {settings.body_timeout:g} s.") from None


def _too_large(settings: ServerSettings) -> HeadraceError:
    return HeadraceError("body_too_large", f"The body is larger than {settings.max_body_kib:,} KiB.")


ABORT = "headrace.abort"
"""Key of an ASGI scope: a function that drops the connection with all that is still unsent."""

GONE = "headrace.gone"
"""Key of an ASGI scope whose client left in the middle of a stream."""


TENANT = "headrace.tenant"
"""Key of an ASGI scope: who calls, as :func:`headrace.server.auth.tenant_of` names it; empty when the server has no keys."""


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


StructType = TypeVar("StructType", bound=msgspec.Struct)


async def decoded(request: Request, settings: ServerSettings, kind: type[StructType]) -> StructType:
    """Read and decode a JSON body."""
    data = await read_body(request, settings)
    if not data.strip():
        raise HeadraceError("invalid_json", "The body is empty; a JSON object is expected.")
    return decode_body(data, kind)


class HangupGuard:
    """Around work for a client: cancels it when the client closes the connection, and then raises :class:`ClientGone`.

    The body must have been read, so that the next thing to receive is the hang-up.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HangupGuard:
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and self._task is not None:
            self._task.uncancel()
            raise ClientGone
