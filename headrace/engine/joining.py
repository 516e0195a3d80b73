"""A worker: joins a server on another machine, and runs one engine process for it.

The engine process is the same as on the server's own machine. The worker stands between it and the network: it opens and makes
sealed records, and tells the engine where it takes pages. When either side ends, both do.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import msgspec

from headrace import __version__
from headrace.engine.sealing import (
    ANSWER_BYTES,
    GREETING_BYTES,
    MAGIC,
    NONCE_BYTES,
    VERDICTS,
    WELCOME,
    Hello,
    Opener,
    Seal,
    SessionKeys,
    hello_bytes,
    page_key,
    read_answer,
    session_keys,
)
from headrace.engine.transport import READ_BYTES, FrameError, Inbound, encode_frame
from headrace.engine.wire import Instance, Start
from headrace.errors import HeadraceError

logger = logging.getLogger("headrace.engine.joining")

GREETING_SECONDS = 10.0
GOODBYE_SECONDS = 5.0
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 20_000))


def keep_alive(sock: socket.socket) -> None:
    """A machine that vanished without a word is noticed after 20 seconds; small frames go out at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, name, value)


def join(address: tuple[str, int], key: bytes, threads: int | None = None) -> None:
    """Join the server at this address and serve it until either side ends.

    Raises ``engine_dead`` when it can't be reached or ends the greeting, ``state_conflict`` when it refuses.
    """
    try:
        connection = socket.create_connection(address, GREETING_SECONDS)
    except OSError as error:
        where = f"{address[0]} port {address[1]}"
        raise HeadraceError("engine_dead", f"no server takes instances at {where}: {error.strerror or error}") from error
    with connection, socket.create_server((connection.getsockname()[0], 0), family=connection.family) as pages:
        keep_alive(connection)
        try:
            keys = greet(connection, key, pages.getsockname()[1])
        except (OSError, FrameError) as error:
            raise HeadraceError("engine_dead", f"the server did not take this instance (is the key the same?): {error}") from error
        connection.settimeout(None)
        logger.info("joined %s port %d", *address)
        _Relay(connection, keys, page_key(key), pages, threads).run()


def greet(connection: socket.socket, key: bytes, port: int) -> SessionKeys:
    """The joiner's side of the greeting. Raises FrameError, OSError, and ``state_conflict`` for a refusal that is proved."""
    greeting = _take(connection, GREETING_BYTES)
    if greeting[: len(MAGIC)] != MAGIC:
        raise FrameError("what listens there takes no instances")
    theirs, own = greeting[len(MAGIC) :], secrets.token_bytes(NONCE_BYTES)
    connection.sendall(hello_bytes(key, theirs, Hello(own, __version__, port)))
    verdict = read_answer(key, theirs, own, _take(connection, ANSWER_BYTES))
    if verdict != WELCOME:
        raise HeadraceError("state_conflict", f"the server refuses this instance: {VERDICTS.get(verdict, 'it says not why')}")
    return session_keys(key, theirs, own)


def _take(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = connection.recv(count - len(data))
        if not got:
            raise FrameError("it has closed the connection")
        data += got
    return data


class _Relay:
    """One engine process and its connection."""

    def __init__(self, connection: socket.socket, keys: SessionKeys, key: bytes, pages: socket.socket, threads: int | None) -> None:
        self._connection = connection
        self._opener, self._seal = Opener(keys.to_engine), Seal(keys.to_api)
        self._key = key
        self._pages = pages
        self._threads = threads
        self._engine, self._theirs = socket.socketpair()

    def run(self) -> None:
        """Until either side ends; the engine's process has ended then."""
        passed = self._theirs.fileno(), self._pages.fileno()
        command = [sys.executable, "-m", "headrace.engine.process", str(passed[0])]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed)
        self._theirs.close()
        inward = threading.Thread(target=self._until_end, args=(self._to_engine,), name="headrace-joined", daemon=True)
        inward.start()
        try:
            self._until_end(self._to_api)
        finally:
            self._shut()
            inward.join()
            self._engine.close()
            try:
                process.wait(GOODBYE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _until_end(self, work: object) -> None:
        assert callable(work), "one of the two directions"
        try:
            work()
        except OSError as error:
            logger.info("the connection has ended: %s", error)
        except FrameError as error:
            logger.error("the connection was closed: %s", error)
        self._shut()

    def _shut(self) -> None:
        for sock in (self._connection, self._engine):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _to_engine(self) -> None:
        inbound = Inbound()
        while data := self._connection.recv(READ_BYTES):
            for message in inbound.feed(self._opener.feed(data)):
                self._engine.sendall(encode_frame(self._placed(message) if isinstance(message, Start) else message))

    def _to_api(self) -> None:
        while data := self._engine.recv(READ_BYTES):
            self._connection.sendall(self._seal.close(data))

    def _placed(self, start: Start) -> Start:
        """The start with what only this machine knows: threads, where pages come in, and what guards them."""
        number = start.instance.number if start.instance is not None else 0
        settings = dataclasses.replace(start.settings, threads=self._threads or start.settings.threads)
        instance = Instance(number, [], f"fd={self._pages.fileno()}", self._key)
        return msgspec.structs.replace(start, settings=settings, instance=instance)
