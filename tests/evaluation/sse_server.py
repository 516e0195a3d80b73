"""A small streaming server with known delays, for tests of clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Script:
    """How one request is answered. Delays in seconds."""

    first: float = 0.03
    gap: float = 0.01
    status: int = 200
    pieces: int | None = None
    cut_after: int | None = None
    error_after: int | None = None
    slow_piece: int | None = None
    stall: float = 0.0


@dataclass
class Answering:
    """The running server: what it was asked, and how many requests were open at most."""

    script: Callable[[int], Script]
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    open: int = 0
    most: int = 0


@contextlib.asynccontextmanager
async def answering(script: Callable[[int], Script]) -> AsyncIterator[Answering]:
    """Run the server; request number i (calibration first) is answered by ``script(i)``."""
    state = Answering(script)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await _answer(state, reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    async with server:
        yield state


def _chunk(data: str) -> bytes:
    raw = data.encode()
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def _event(document: dict[str, Any]) -> bytes:
    return _chunk(f"data: {json.dumps(document)}\n\n")


async def _answer(state: Answering, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
    raw = await reader.readexactly(length)
    state.heads.append(head)
    if head.startswith("GET"):
        listing = b'{"data": [{"id": "tiny"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(listing) + listing)
        return
    body = json.loads(raw)
    state.bodies.append(body)
    script = state.script(len(state.bodies) - 1)
    if script.status != 200:
        refusal = b'{"error": {"message": "queue is full"}}'
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (script.status, len(refusal)) + refusal)
        return
    state.open += 1
    state.most = max(state.most, state.open)
    try:
        await _stream(script, body, writer)
    finally:
        state.open -= 1


async def _stream(script: Script, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n")
    pieces = script.pieces if script.pieces is not None else body["max_tokens"]
    await asyncio.sleep(script.first)
    for index in range(pieces):
        if index:
            await asyncio.sleep(script.gap + (script.stall if index == script.slow_piece else 0.0))
        if index == script.cut_after:
            return
        if index == script.error_after:
            writer.write(_event({"error": {"message": "engine died"}}))
            break
        piece = {"text": " a"} if "prompt" in body else {"delta": {"content": " a"}}
        writer.write(_chunk(": ping\n\n") + _event({"choices": [piece]}))
        await writer.drain()
    text = body.get("prompt") or body["messages"][0]["content"]
    writer.write(_event({"choices": [], "usage": {"prompt_tokens": 2 * len(text.split()), "completion_tokens": pieces}}))
    writer.write(_chunk("data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()
