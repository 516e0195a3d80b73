"""Length-capped msgpack frames over an inherited socket: the only way that the API and the engine process talk."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Any

import msgspec

from headrace.engine.relocation_wire import ApiMessage, EngineMessage
from headrace.engine.wire import MAX_FRAME_BYTES
from headrace.errors import HeadraceError

_LENGTH = struct.Struct("<I")
READ_BYTES = 1 << 18
MAX_BUFFERED_BYTES = 4 * MAX_FRAME_BYTES


class FrameError(Exception):
    """The peer sent something that is not a frame of this protocol; the connection can't go on."""


class PeerGone(Exception):
    """The peer has closed its end, or no longer reads."""


class FrameReader:
    """Cuts a byte stream into frame bodies; a frame is a little-endian u32 length and that many bytes."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Add received bytes and return the bodies completed by them. Raises FrameError for a length over the limit."""
        self._buffer += data
        bodies: list[bytes] = []
        offset = 0
        while len(self._buffer) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, offset)
            if length > self._limit:
                raise FrameError(f"a frame of {length} bytes is over the limit of {self._limit}")
            end = offset + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(memoryview(self._buffer)[offset + _LENGTH.size : end]))
            offset = end
        if offset:
            del self._buffer[:offset]
        return bodies

    @property
    def partial(self) -> int:
        """Bytes of a frame that has not arrived whole."""
        return len(self._buffer)


_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: msgspec.Struct) -> bytes:
    """A message as one frame. Raises FrameError when it is over the size limit."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Inbound:
    """Decodes what the engine process receives."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ApiMessage)

    def feed(self, data: bytes | memoryview) -> list[ApiMessage]:
        """Messages completed by these bytes. Raises FrameError for bytes that are no message of this protocol."""
        return _decode(self._decoder, self._reader.feed(data))


class Outbound:
    """Decodes what the API process receives from the engine."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(EngineMessage)

    def feed(self, data: bytes | memoryview) -> list[EngineMessage]:
        """Messages completed by these bytes. Raises FrameError for bytes that are no message of this protocol."""
        return _decode(self._decoder, self._reader.feed(data))


def _decode(decoder: msgspec.msgpack.Decoder[Any], bodies: list[bytes]) -> list[Any]:
    try:
        return [decoder.decode(body) for body in bodies]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, HeadraceError) as error:  # options check themselves
        raise FrameError(f"a frame is no message of this protocol: {error}") from error


class EngineSocket:
    """The engine's end: reads never block, writes are buffered so that a slow API process does not hold a step up.

    ``patience`` is how long in seconds a full write buffer may stay full before the peer counts as gone.
    """

    def __init__(self, sock: socket.socket, *, limit: int = MAX_BUFFERED_BYTES, patience: float = 30.0) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._inbound = Inbound()
        self._unsent = bytearray()
        self._limit = limit
        self._patience = patience

    def receive(self) -> list[ApiMessage]:
        """Everything that has arrived whole, without waiting. Raises PeerGone at end of stream, FrameError for nonsense."""
        messages: list[ApiMessage] = []
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                return messages
            except OSError as error:
                raise PeerGone(str(error)) from error
            if not data:
                raise PeerGone("the API process has closed the connection")
            messages += self._inbound.feed(data)
            if len(data) < READ_BYTES:
                return messages

    def wait(self, timeout: float | None) -> None:
        """Sleep until something can be read (or buffered bytes written), at most ``timeout`` seconds."""
        writers = [self._socket] if self._unsent else []
        _, writable, _ = select.select([self._socket], writers, [], timeout)
        if writable:
            self.flush()

    def readable(self) -> bool:
        """True when something has arrived, or the peer is gone. Never waits."""
        return bool(select.select([self._socket], [], [], 0.0)[0])

    def send(self, message: EngineMessage) -> None:
        """Queue a message and write what the socket takes. Raises PeerGone when the peer is gone or reads nothing."""
        self._unsent += encode_frame(message)
        self.flush()
        deadline = time.monotonic() + self._patience
        while len(self._unsent) > self._limit:
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerGone(f"the API process has read nothing for {self._patience:.0f} s")
            select.select([], [self._socket], [], left)
            self.flush()

    def flush(self) -> None:
        """Write buffered bytes as far as the socket takes them. Raises PeerGone."""
        while self._unsent:
            try:
                sent = self._socket.send(memoryview(self._unsent)[:READ_BYTES])
            except BlockingIOError:
                return
            except OSError as error:
                raise PeerGone(str(error)) from error
            del self._unsent[:sent]

    def drain(self, timeout: float) -> None:
        """Write everything that is buffered, waiting at most ``timeout`` seconds. Raises PeerGone."""
        deadline = time.monotonic() + timeout
        self.flush()
        while self._unsent and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._socket], [], left)
            self.flush()

    def close(self) -> None:
        """Close the engine's end."""
        self._socket.close()
