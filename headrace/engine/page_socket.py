"""Where pages go: a unix socket of this machine, or TCP to another one, where each frame is sealed as well."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from contextlib import suppress

from headrace.kernels.interface import Bytes

_NETWORK, _INHERITED = "tcp:", "fd="
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 20_000))
_NUMBER = struct.Struct("<Q")
SEAL_BYTES = 32


def keep_alive(sock: socket.socket) -> None:
    """A machine that vanished without a word is noticed after 20 seconds; small frames go out at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, name, value)


def is_network(address: str) -> bool:
    """True for an engine that exchanges pages with other machines."""
    return address.startswith((_NETWORK, _INHERITED))


class PageSeal:
    """Seals of the frames of one connection, in their order: an HMAC over number, head and page."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def next(self, head: bytes, page: Bytes) -> bytes:
        """The seal of the next frame."""
        seal = hmac.new(self._key, _NUMBER.pack(self._number) + head, hashlib.sha256)
        seal.update(page.data)
        self._number += 1
        return seal.digest()


def listening_socket(address: str) -> socket.socket:
    """The socket that ``fd=N`` names, which this process has inherited; else a new unix socket, not bound yet."""
    if address.startswith(_INHERITED):
        return socket.socket(fileno=int(address[len(_INHERITED) :]))
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def listen(sock: socket.socket, address: str) -> None:
    """Take connections from now on; on a unix socket only those of this user. Raises OSError."""
    if not is_network(address):
        sock.bind(address)
        os.chmod(address, 0o600)
    sock.listen(16)


def forget(address: str) -> None:
    """Take the name of a unix socket away."""
    if not is_network(address):
        with suppress(OSError):
            os.unlink(address)


def sending_socket(address: str) -> socket.socket:
    """A socket for pages to this address, not connected yet."""
    if not address.startswith(_NETWORK):
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    return socket.socket(socket.AF_INET6 if ":" in _place(address)[0] else socket.AF_INET, socket.SOCK_STREAM)


def connect(sock: socket.socket, address: str) -> None:
    """Connect; small frames then go out at once, and a peer that has vanished is noticed. Raises OSError."""
    if not address.startswith(_NETWORK):
        sock.connect(address)
        return
    sock.connect(_place(address))
    keep_alive(sock)


def _place(address: str) -> tuple[str, int]:
    host, _, port = address[len(_NETWORK) :].rpartition(":")
    return host, int(port)
