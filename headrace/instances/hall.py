"""Where instances of other machines come in: proves the key both ways, and hands their connections to who waits for one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from headrace import __version__
from headrace.engine.joining import GREETING_SECONDS
from headrace.engine.page_socket import keep_alive
from headrace.engine.refusals import Refusals
from headrace.engine.sealing import (
    HELLO_BYTES,
    MAGIC,
    NONCE_BYTES,
    OTHER_VERSION,
    WELCOME,
    SessionKeys,
    answer_bytes,
    read_hello,
    session_keys,
    verdict_of,
)
from headrace.engine.transport import FrameError
from headrace.errors import HeadraceError
from headrace.placement.joining import Joining

logger = logging.getLogger("headrace.instances.hall")

MOST_GREETINGS = 64
"""Connections that are being greeted at once; more are closed."""


@dataclass(frozen=True, slots=True, eq=False)
class Joiner:
    """A connection to a worker that proved the key. ``pages``: where its engine takes pages."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keys: SessionKeys
    pages: str


class Hall:
    """Listens for workers.

    ``refusals``: peers that prove nothing (``stranger``), say nothing (``silent``) or come in crowds (``crowd``); workers for which
    there is no place (``full``), of another ``version``, with another ``model``, other ``weights`` or ``pages``, that can't load
    (``load``), or whose records are not what they sealed (``broken``).
    """

    def __init__(self, joining: Joining, key: bytes) -> None:
        self.refusals = Refusals(logger, "a connection for instances")
        self.port = joining.port
        self._joining = joining
        self._key = key
        self._greeting = 0
        self._waiting: deque[asyncio.Future[Joiner]] = deque()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen from now on. Raises ``invalid_setting`` when the address can't be had."""
        try:
            self._server = await asyncio.start_server(self._come, self._joining.host, self._joining.port)
        except OSError as error:
            message = f"can't take instances at {self._joining.host} port {self._joining.port}: {error.strerror or error}"
            raise HeadraceError("invalid_setting", message, param="instances") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def next(self) -> Joiner:
        """The next worker that joins."""
        future: asyncio.Future[Joiner] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        finally:
            with suppress(ValueError):
                self._waiting.remove(future)

    def close(self) -> None:
        """Take nobody more."""
        if self._server is not None:
            self._server.close()

    async def closed(self) -> None:
        """Wait until all that was started for the workers has ended."""

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("?",))[0])
        if self._greeting >= MOST_GREETINGS:
            writer.close()
            self.refusals.note("crowd", f"{peer} came while {MOST_GREETINGS} others were greeted")
            return
        self._greeting += 1
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                refused = await self._greet(reader, writer)
        except TimeoutError:
            refused = "silent", f"had not said who it is after {GREETING_SECONDS:.0f} s"
        except FrameError as error:
            refused = "stranger", str(error)
        except (OSError, asyncio.IncompleteReadError):
            refused = "stranger", "went before it had said who it is"
        finally:
            self._greeting -= 1
        if refused is not None:
            self.refusals.note(refused[0], f"{peer} {refused[1]}")
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, str] | None:
        """Let a worker in; else (reason, what is wrong with it)."""
        own = secrets.token_bytes(NONCE_BYTES)
        writer.write(MAGIC + own)
        hello = read_hello(self._key, own, await reader.readexactly(HELLO_BYTES))
        verdict = verdict_of(hello, len(self._waiting))
        writer.write(answer_bytes(self._key, own, hello.nonce, verdict))
        if verdict == OTHER_VERSION:
            return "version", f"runs version {hello.version[:32]!r} of headrace, this is {__version__!r}"
        if verdict != WELCOME:
            return "full", "finds no place free"
        sock: socket.socket = writer.get_extra_info("socket")
        keep_alive(sock)
        host = writer.get_extra_info("peername")[0]
        self._waiting.popleft().set_result(
            Joiner(reader, writer, session_keys(self._key, own, hello.nonce), f"tcp:{host}:{hello.port}")
        )
        return None
