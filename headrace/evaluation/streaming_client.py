"""A light HTTP client for streamed completions: it must not eat the cores that the server under test needs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from headrace.errors import HeadraceError

_LINE_LIMIT = 8 * 1024 * 1024
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an OpenAI-compatible server listens; ``path`` is what stands before ``/v1``."""

    host: str
    port: int
    tls: bool
    path: str
    api_key: str | None = None


def parse_url(url: str, api_key: str | None = None) -> Endpoint:
    """Take a base URL apart, with or without ``/v1`` at its end. Raises ``invalid_setting`` for anything else."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise HeadraceError("invalid_setting", f"url must look like http://host:port, not '{url}'", param="url")
    tls = parts.scheme == "https"
    return Endpoint(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/").removesuffix("/v1"), api_key)


class Usage(msgspec.Struct):
    """Token counts as the server reports them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Event)


class RequestFailedError(Exception):
    """A request that did not end well; ``kind`` groups failures: ``http 429``, ``stream error``, ``cut off`` …"""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


@dataclass(slots=True)
class Stream:
    """What came of one streamed request. ``times`` are seconds on the monotonic clock, one for each piece of text."""

    started: float
    times: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    usage: Usage | None = None
    finish: str | None = None
    ended: float = 0.0


async def stream(endpoint: Endpoint, path: str, body: Mapping[str, Any], into: Stream | None = None) -> Stream:
    """POST a completion with ``stream: true`` and note the time of every piece.

    Raises :class:`RequestFailedError` for a refusal, an error event, and a stream that ends without saying so.
    """
    result = into if into is not None else Stream(time.perf_counter())
    done = False
    async with _exchange(endpoint, "POST", path, msgspec.json.encode(body)) as (status, chunks):
        if status != 200:
            raise RequestFailedError(f"http {status}", await _error_text(chunks))
        async for line in _lines(chunks):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == _DONE:
                done = True
                break
            _take(_decode(data), result)
    result.ended = time.perf_counter()
    if not done:
        raise RequestFailedError("cut off", "the stream ended without [DONE]")
    return result


def _decode(data: bytes) -> _Event:
    try:
        return _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise RequestFailedError("bad event", str(error)) from None


def _take(event: _Event, result: Stream) -> None:
    if event.error is not None:
        raise RequestFailedError("stream error", str(event.error.get("message", "")))
    if event.usage is not None:
        result.usage = event.usage
    for choice in event.choices:
        text = choice.text if choice.delta is None else choice.delta.content
        if text:
            result.times.append(time.perf_counter())
            result.text.append(text)
        result.finish = choice.finish_reason or result.finish


async def fetch_json(endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """One plain JSON call. Raises :class:`RequestFailedError` for any status but 200 and for a body that is no JSON."""
    payload = msgspec.json.encode(body) if body is not None else b""
    async with _exchange(endpoint, method, path, payload) as (status, chunks):
        if status != 200:
            raise RequestFailedError(f"http {status}", await _error_text(chunks))
        try:
            return msgspec.json.decode(b"".join([chunk async for chunk in chunks]))
        except msgspec.DecodeError as error:
            raise RequestFailedError("bad answer", str(error)) from None


async def _error_text(chunks: AsyncIterator[bytes]) -> str:
    raw = b"".join([chunk async for chunk in chunks])
    try:
        message = msgspec.json.decode(raw)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = raw[:200].decode(errors="replace")
    return str(message)


@contextlib.asynccontextmanager
async def _exchange(endpoint: Endpoint, method: str, path: str, body: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """One request on a connection of its own; gives the status and the body's chunks. The connection is always closed."""
    context = ssl.create_default_context() if endpoint.tls else None
    try:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context, limit=_LINE_LIMIT)
    except OSError as error:
        raise RequestFailedError("connect", error.strerror or str(error)) from None
    try:
        writer.write(_request_head(endpoint, method, path, len(body)) + body)
        await writer.drain()
        status, headers = await _response_head(reader)
        yield status, _body(reader, headers)
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError) as error:
        raise RequestFailedError("cut off", type(error).__name__) from None
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def _request_head(endpoint: Endpoint, method: str, path: str, length: int) -> bytes:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    lines = [f"{method} {endpoint.path}{path} HTTP/1.1", f"host: {host}:{endpoint.port}", "connection: close", "accept: */*"]
    lines += ["content-type: application/json", f"content-length: {length}"]
    if endpoint.api_key:
        lines.append(f"authorization: Bearer {endpoint.api_key}")
    return "\r\n".join((*lines, "", "")).encode()


async def _response_head(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *rest = raw.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise RequestFailedError("bad answer", "no HTTP status line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in rest if line)}
    return int(words[1]), headers


async def _body(reader: asyncio.StreamReader, headers: Mapping[bytes, bytes]) -> AsyncIterator[bytes]:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while True:
            size = int((await reader.readline()).split(b";")[0].strip() or b"0", 16)
            data = await reader.readexactly(size + 2)
            if not size:
                return
            yield data[:-2]
    elif b"content-length" in headers:
        yield await reader.readexactly(int(headers[b"content-length"]))
    else:
        while data := await reader.read(65536):
            yield data


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest
