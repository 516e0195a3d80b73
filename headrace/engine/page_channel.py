"""Pages from one engine's pool to another's over a socket of their own: authenticated, numbered, with checksums.

A sender connects, both sides prove that they know the server's key, and the sender names the move and what its pages depend on.
Then come frames of one page each. Whatever is not as it should be ends the connection, and with it the move; the request stays
where it was.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from headrace.engine.page_socket import (
    SEAL_BYTES,
    PageSeal,
    connect,
    forget,
    is_network,
    keep_alive,
    listen,
    listening_socket,
    sending_socket,
)
from headrace.engine.refusals import Refusals
from headrace.kernels.interface import Bytes

logger = logging.getLogger("headrace.engine.page_channel")

NONCE_BYTES = 16
PROOF_BYTES = 32
SECONDS = 10.0
"""A peer that is silent for so long in the middle of something is gone."""
MOST_GREETINGS = 32
"""Connections that are being greeted at once; more are closed."""
_HELLO = struct.Struct("<QI32s")  # move, bytes of a page, digest of what pages depend on
_FRAME = struct.Struct("<IIQ")  # number, length, checksum
_AGREED = b"agreed"

Checksum = Callable[[Bytes], int]


class ChannelError(Exception):
    """The other side is not who or what it should be, or something got lost. ``reason``: one word for it."""

    def __init__(self, message: str, reason: str = "broken") -> None:
        super().__init__(message)
        self.reason = reason


class Landing(Protocol):
    """Where the pages of a move go."""

    def put(self, number: int, page: Bytes) -> bool:
        """Take a page; False when none is wanted any more."""

    def fail(self, problem: str) -> None:
        """Nothing more will come."""


def digest_of(identity: str) -> bytes:
    """What two engines must have in common to exchange pages, in 32 bytes."""
    return hashlib.sha256(identity.encode()).digest()


def _proof(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def _seal(address: str, key: bytes, listener: bytes, sender: bytes) -> PageSeal | None:
    """What seals the frames of a connection between machines; on one machine nobody else can reach them."""
    return PageSeal(_proof(key, b"session", listener, sender)) if is_network(address) else None


def _receive(sock: socket.socket, into: memoryview) -> None:
    at = 0
    while at < len(into):
        count = sock.recv_into(into[at:])
        if not count:
            raise ChannelError("the connection has ended in the middle of a page" if at else "the connection has ended")
        at += count


def _take(sock: socket.socket, count: int, until: float | None = None) -> bytes:
    """So many bytes; with ``until`` no later than then, however slowly they come. Raises TimeoutError then."""
    data = bytearray()
    while len(data) < count:
        if until is not None:
            sock.settimeout(max(0.001, until - time.monotonic()))
        got = sock.recv(count - len(data))
        if not got:
            raise ChannelError("the connection has ended")
        data += got
    return bytes(data)


class PageListener:
    """Takes pages on a unix socket that only this user can open, or from other machines; one thread a connection.

    ``find`` gives the landing of a move, ``None`` for a move that nobody expects. ``refusals``: peers that prove nothing
    (``stranger``), say nothing (``silent``), come in crowds (``crowd``), bring another engine's pages (``model``) or pages of no
    move (``unexpected``), or whose frames are not what they sealed (``broken``).
    """

    def __init__(self, address: str, key: bytes, page_bytes: int, identity: str) -> None:
        self.refusals = Refusals(logger, "a connection for pages")
        self.find: Callable[[int], Landing | None] = lambda move: None
        self._address = address
        self._key = key
        self._page_bytes = page_bytes
        self._digest = digest_of(identity)
        self._checksum: Checksum | None = None
        self._socket = listening_socket(address)
        self._closed = False
        self._greeting = threading.Semaphore(MOST_GREETINGS)

    def start(self, find: Callable[[int], Landing | None], checksum: Checksum) -> None:
        """Listen from now on. Raises OSError when the address can't be had."""
        self.find, self._checksum = find, checksum
        listen(self._socket, self._address)
        threading.Thread(target=self._accept, name="headrace-pages", daemon=True).start()

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        forget(self._address)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._greeting.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(connection,), name="headrace-landing", daemon=True).start()
            else:
                connection.close()
                self.refusals.note("crowd", f"{MOST_GREETINGS} others are being greeted")

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                landing, seal = self._greet(connection)
            except (ChannelError, OSError) as error:
                self.refusals.note(*_why(error))
                return
            finally:
                self._greeting.release()
            try:
                self._land(connection, landing, seal)
            except ChannelError as error:
                self.refusals.note(error.reason, str(error))
                landing.fail(str(error))
            except OSError as error:
                landing.fail(str(error) or "the connection has ended")

    def _greet(self, connection: socket.socket) -> tuple[Landing, PageSeal | None]:
        until = time.monotonic() + SECONDS
        nonce = secrets.token_bytes(NONCE_BYTES)
        connection.settimeout(SECONDS)
        connection.sendall(nonce)
        said = _take(connection, _HELLO.size + NONCE_BYTES + PROOF_BYTES, until)
        hello, theirs, proved = said[: _HELLO.size], said[_HELLO.size : -PROOF_BYTES], said[-PROOF_BYTES:]
        if not hmac.compare_digest(proved, _proof(self._key, nonce, theirs, hello)):
            raise ChannelError("a peer that does not know the key", "stranger")
        move, page_bytes, digest = _HELLO.unpack(hello)
        if page_bytes != self._page_bytes or digest != self._digest:
            raise ChannelError("an engine with another model, version or page format", "model")
        landing = self.find(move)
        if landing is None:
            raise ChannelError(f"nobody expects move {move}", "unexpected")
        connection.sendall(_proof(self._key, theirs, _AGREED))
        connection.settimeout(None)  # stages may lie apart; the end of the sender closes the connection
        if is_network(self._address):
            keep_alive(connection)  # which the end of its machine does not
        return landing, _seal(self._address, self._key, nonce, theirs)

    def _land(self, connection: socket.socket, landing: Landing, seal: PageSeal | None) -> None:
        assert self._checksum is not None, "the listener was started"
        page = np.empty(self._page_bytes, np.uint8)
        head = bytearray(_FRAME.size)
        while True:
            first = connection.recv(1)
            if not first:
                return  # the sender has nothing more
            head[:1] = first
            _receive(connection, memoryview(head)[1:])
            number, length, told = _FRAME.unpack(head)
            if length != self._page_bytes:
                raise ChannelError(f"a page of {length} bytes came, not of {self._page_bytes}")
            _receive(connection, page.data)
            if seal is not None and not hmac.compare_digest(_take(connection, SEAL_BYTES), seal.next(bytes(head), page)):
                raise ChannelError(f"page {number} came with a wrong seal")
            if self._checksum(page) != told:
                raise ChannelError(f"page {number} came with a wrong checksum")
            if not landing.put(number, page):
                return


def _why(error: ChannelError | OSError) -> tuple[str, str]:
    """The word for a greeting that came to nothing, and what to log."""
    if isinstance(error, TimeoutError):
        return "silent", f"a peer had not said who it is after {SECONDS:.0f} s"
    if isinstance(error, ChannelError):
        return ("stranger" if error.reason == "broken" else error.reason), str(error)
    return "stranger", str(error)


class PageSender:
    """One thread that sends the pages of one move, stage after stage. ``pages``: the pool, [pages, …]."""

    def __init__(self, target: tuple[str, int], proof: tuple[bytes, str], pages: Bytes, checksum: Checksum) -> None:
        self.problem: str | None = None
        self.sent_bytes = 0
        self._address, self._move = target
        self._key, identity = proof
        self._digest = digest_of(identity)
        self._pages = pages
        self._checksum = checksum
        self._stages: SimpleQueue[Sequence[tuple[int, int]] | None] = SimpleQueue()
        self._asked = 0
        self._ended = 0
        self._seal: PageSeal | None = None
        self._socket = sending_socket(self._address)
        self._thread = threading.Thread(target=self._run, name="headrace-departure", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """True when everything that was given has been sent, or never will be."""
        return self._ended == self._asked or self.problem is not None

    def send(self, stage: Sequence[tuple[int, int]]) -> None:
        """Send these (number, page) after all others. They must stay as they are until :attr:`idle`."""
        self._asked += 1
        self._stages.put(stage)

    def finish(self) -> None:
        """Close the connection after what was given."""
        self._stages.put(None)

    def abort(self) -> None:
        """End now; when this returns no page is read any more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._stages.put(None)
        self._thread.join()

    def _run(self) -> None:
        with self._socket:
            try:
                self._connect()
                while (stage := self._stages.get()) is not None:
                    for number, page in stage:
                        self._send_page(number, page)
                    self._ended += 1
            except (ChannelError, OSError) as error:
                self.problem = str(error) or "the connection has ended"

    def _connect(self) -> None:
        sock = self._socket
        sock.settimeout(SECONDS)
        connect(sock, self._address)
        nonce, own = _take(sock, NONCE_BYTES), secrets.token_bytes(NONCE_BYTES)
        hello = _HELLO.pack(self._move, self._pages[0].size, self._digest)
        sock.sendall(hello + own + _proof(self._key, nonce, own, hello))
        if not hmac.compare_digest(_take(sock, PROOF_BYTES), _proof(self._key, own, _AGREED)):
            raise ChannelError("the other engine does not know the key")
        self._seal = _seal(self._address, self._key, nonce, own)

    def _send_page(self, number: int, page: int) -> None:
        data = np.ascontiguousarray(self._pages[page]).reshape(-1)
        head = _FRAME.pack(number, data.size, self._checksum(data))
        self._socket.sendall(head)
        self._socket.sendall(data.data)
        if self._seal is not None:
            self._socket.sendall(self._seal.next(head, data))
        self.sent_bytes += data.size


@dataclass(frozen=True, slots=True)
class Channel:
    """How pages travel: who takes them here, what proves who we are, and what guards them."""

    listener: PageListener
    key: bytes
    identity: str
    checksum: Checksum
