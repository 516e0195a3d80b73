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
from headrace.engine.page_socket import keep_alive
from headrace.engine.relocation_wire import Dismissed, WorkerRole
from headrace.engine.sealing import (
    ANSWER_BYTES,
    GREETING_BYTES,
    MAGIC,
    NONCE_BYTES,
    OTHER_VERSION,
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
from headrace.engine.transport import READ_BYTES, FrameError, Inbound, Outbound, encode_frame
from headrace.engine.wire import Failed, Instance, Start
from headrace.errors import ERROR_TABLE, HeadraceError
from headrace.placement.roles import Role

logger = logging.getLogger("headrace.engine.joining")

GREETING_SECONDS = 10.0
GOODBYE_SECONDS = 5.0


def join(address: tuple[str, int], key: bytes, threads: int | None = None, role: Role | None = None) -> None:
    """Join the server at this address and serve it until either side ends. ``role``: the instance gets it when it serves.

    Raises ``engine_dead`` when it can't be reached or ends the greeting, ``state_conflict`` when it has no place now; another code
    (:func:`is_final`) when it refuses this version or what was loaded, or when nothing could be loaded.
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
        relay = _Relay(connection, keys, page_key(key), pages, threads)
        relay.run(role)
    if relay.problem is not None:
        raise relay.problem


def is_final(error: HeadraceError) -> bool:
    """True when joining again can't help until somebody has changed something on one of the machines."""
    return error.code not in ("engine_dead", "state_conflict", "internal_error")


def greet(connection: socket.socket, key: bytes, port: int) -> SessionKeys:
    """The joiner's side of the greeting. Raises FrameError, OSError, and ``state_conflict`` for a refusal that is proved."""
    greeting = _take(connection, GREETING_BYTES)
    if greeting[: len(MAGIC)] != MAGIC:
        raise FrameError("what listens there takes no instances")
    theirs, own = greeting[len(MAGIC) :], secrets.token_bytes(NONCE_BYTES)
    connection.sendall(hello_bytes(key, theirs, Hello(own, __version__, port)))
    verdict = read_answer(key, theirs, own, _take(connection, ANSWER_BYTES))
    if verdict != WELCOME:
        code = "invalid_setting" if verdict == OTHER_VERSION else "state_conflict"
        raise HeadraceError(code, f"the server refuses this instance: {VERDICTS.get(verdict, 'it says not why')}")
    return session_keys(key, theirs, own)


def _take(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = connection.recv(count - len(data))
        if not got:
            raise FrameError("it has closed the connection")
        data += got
    return data


def _error(code: str, message: str) -> HeadraceError:
    return HeadraceError(code if code in ERROR_TABLE else "internal_error", message[:1000])


class _Relay:
    """One engine process and its connection. ``problem``: why the server dismissed it, or why it could not load."""

    def __init__(self, connection: socket.socket, keys: SessionKeys, key: bytes, pages: socket.socket, threads: int | None) -> None:
        self.problem: HeadraceError | None = None
        self._connection = connection
        self._opener, self._seal = Opener(keys.to_engine), Seal(keys.to_api)
        self._key = key
        self._pages = pages
        self._threads = threads
        self._engine, self._theirs = socket.socketpair()

    def run(self, role: Role | None = None) -> None:
        """Until either side ends; the engine's process has ended then."""
        if role is not None:
            self._connection.sendall(self._seal.close(encode_frame(WorkerRole(role))))
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
                if isinstance(message, Dismissed):
                    self.problem = _error(message.code, f"the server refuses this instance: {message.message}")
                    return
                self._engine.sendall(encode_frame(self._placed(message) if isinstance(message, Start) else message))

    def _to_api(self) -> None:
        first: Outbound | None = Outbound()  # until the engine has said whether it could load
        while data := self._engine.recv(READ_BYTES):
            for message in first.feed(data) if first is not None else ():
                first = None
                if isinstance(message, Failed):
                    self.problem = _error(message.code, message.message)
            self._connection.sendall(self._seal.close(data))

    def _placed(self, start: Start) -> Start:
        """The start with what only this machine knows: threads, where pages come in, and what guards them."""
        number = start.instance.number if start.instance is not None else 0
        settings = dataclasses.replace(start.settings, threads=self._threads or start.settings.threads)
        instance = Instance(number, [], f"fd={self._pages.fileno()}", self._key)
        return msgspec.structs.replace(start, settings=settings, instance=instance)
