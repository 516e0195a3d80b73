"""One HTTP request a connection over bare sockets, so that a client can also leave, read slowly, or send half of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 300.0
_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``whole`` is False when the connection ended before its end; status 0 means that nothing came at all."""

    status: int
    body: bytes
    whole: bool

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is cut when the block ends."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=_LIMIT)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def head(self, method: str, path: str, length: int, kind: str = "application/json") -> bytes:
        """The request line and headers."""
        lines = (
            f"{method} {path} HTTP/1.1",
            f"host: {self.host}",
            f"content-type: {kind}",
            f"content-length: {length}",
            "connection: close",
        )
        return "\r\n".join([*lines, "", ""]).encode()

    async def call(self, path: str, body: Any = None, method: str = "", kind: str = "application/json") -> Reply:
        """Send a request and read its answer. ``body``: bytes, or what becomes JSON; ``method``: POST where there is a body.

        Raises TimeoutError after five minutes, OSError when there is no connection.
        """
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        async with asyncio.timeout(PATIENCE), self.connection() as (reader, writer):
            writer.write(self.head(method or ("GET" if body is None else "POST"), path, len(data), kind) + data)
            await writer.drain()
            return _parse(await _rest(reader))


async def _rest(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    try:
        while piece := await reader.read(65536):
            pieces.append(piece)
    except ConnectionError:
        pieces.append(b"")  # what came is judged: an answer that is cut off is not whole
    return b"".join(pieces)


def _parse(raw: bytes) -> Reply:
    head, found, body = raw.partition(b"\r\n\r\n")
    if not found:
        return Reply(0, b"", False)
    lines = head.lower().split(b"\r\n")
    status = int(lines[0].split(b" ")[1])
    fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
    if b"content-length" in fields:
        return Reply(status, body, len(body) == int(fields[b"content-length"]))
    if fields.get(b"transfer-encoding") == b"chunked":
        return Reply(status, *_unchunk(body))
    return Reply(status, body, True)


def _unchunk(body: bytes) -> tuple[bytes, bool]:
    pieces: list[bytes] = []
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        if size == 0:
            return b"".join(pieces), True
        pieces.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(pieces), False


def form(fields: dict[str, str], data: bytes) -> tuple[bytes, str]:
    """A file with fields as multipart form, and its content type."""
    parts = [f'--soak\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    parts.append('--soak\r\ncontent-disposition: form-data; name="file"; filename="lines.jsonl"\r\n\r\n')
    return "".join(parts).encode() + data + b"\r\n--soak--\r\n", "multipart/form-data; boundary=soak"
