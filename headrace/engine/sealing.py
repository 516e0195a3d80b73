"""What two machines say to each other so that nobody else can say it: a greeting with mutual proof, and numbered, sealed records.

Both sides know one key, which never travels. Each proves that it does by an HMAC over the other's fresh nonce; both derive from key
and nonces one key for each direction. A record is a length, a number that counts up from 0, an HMAC over these and the payload, and
the payload: what is replayed, left out, cut short, changed or foreign ends the connection. Nothing is hidden: it is not encryption.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from headrace import __version__
from headrace.engine.transport import FrameError
from headrace.errors import HeadraceError

MAGIC = b"hdrjoin1"
NONCE_BYTES = 32
PROOF_BYTES = 32
MOST_PAYLOAD = 1 << 20
SHORTEST_KEY = 16
LONGEST_KEY = 4096
WELCOME, OTHER_VERSION, FULL = 0, 1, 2
VERDICTS = {OTHER_VERSION: "it runs another version of headrace", FULL: "all of its places are taken"}
_HEAD = struct.Struct("<IQ")  # bytes of the payload, number
_HELLO = struct.Struct(f"<{NONCE_BYTES}s32sH")  # nonce, version, port for pages
HELLO_BYTES = _HELLO.size + PROOF_BYTES
GREETING_BYTES = len(MAGIC) + NONCE_BYTES
ANSWER_BYTES = 1 + PROOF_BYTES


def proof(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 over the parts. Parts of one label have fixed lengths, so that no two lists give the same bytes."""
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def page_key(key: bytes) -> bytes:
    """What guards connections for pages between engines that joined with this key."""
    return proof(key, b"pages")


def check_key(text: bytes) -> bytes:
    """The key in a file's bytes, without white space around it. Raises ``invalid_setting`` for one too short or too long."""
    key = text.strip()
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        message = f"the key that joins instances must have {SHORTEST_KEY} to {LONGEST_KEY} bytes, not {len(key)}"
        raise HeadraceError("invalid_setting", f"{message}; `openssl rand -hex 32` makes one", param="instances")
    return key


@dataclass(frozen=True, slots=True)
class Hello:
    """What a joiner says of itself: its nonce, its version, the port where it takes pages."""

    nonce: bytes
    version: str
    port: int


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """One key for each direction of one connection."""

    to_engine: bytes
    to_api: bytes


def session_keys(key: bytes, listener: bytes, joiner: bytes) -> SessionKeys:
    """From the two nonces of a greeting."""
    return SessionKeys(proof(key, b"to engine", listener, joiner), proof(key, b"to api   ", listener, joiner))


def hello_bytes(key: bytes, listener: bytes, hello: Hello) -> bytes:
    """A joiner's answer to the listener's nonce."""
    body = _HELLO.pack(hello.nonce, hello.version.encode()[:32], hello.port)
    return body + proof(key, b"joins", listener, body)


def read_hello(key: bytes, listener: bytes, data: bytes) -> Hello:
    """A joiner's answer, proved. Raises FrameError."""
    body = data[: _HELLO.size]
    if len(data) != HELLO_BYTES or not hmac.compare_digest(data[_HELLO.size :], proof(key, b"joins", listener, body)):
        raise FrameError("does not know the key")
    nonce, version, port = _HELLO.unpack(body)
    return Hello(nonce, version.rstrip(b"\0").decode(errors="replace"), port)


def verdict_of(hello: Hello, places: int) -> int:
    """Whether a joiner that proved the key may come in."""
    if hello.version != __version__[:32]:
        return OTHER_VERSION
    return WELCOME if places else FULL


def answer_bytes(key: bytes, listener: bytes, joiner: bytes, verdict: int) -> bytes:
    """The listener's proof, and what it thinks of the joiner."""
    said = bytes([verdict])
    return said + proof(key, b"taken", said, joiner, listener)


def read_answer(key: bytes, listener: bytes, joiner: bytes, data: bytes) -> int:
    """The listener's verdict, proved. Raises FrameError."""
    if len(data) != ANSWER_BYTES or not hmac.compare_digest(data[1:], proof(key, b"taken", data[:1], joiner, listener)):
        raise FrameError("the server does not know the key")
    return data[0]


class Seal:
    """Makes records of one direction."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def close(self, data: bytes) -> bytes:
        """Bytes as records, of 1 MiB at most each."""
        records = []
        for start in range(0, len(data), MOST_PAYLOAD):
            payload = data[start : start + MOST_PAYLOAD]
            head = _HEAD.pack(len(payload), self._number)
            self._number += 1
            records += [head, proof(self._key, head, payload), payload]
        return b"".join(records)


class Opener:
    """Takes records of one direction apart."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Add received bytes; the payloads completed by them. Raises FrameError for anything but the next record."""
        self._buffer += data
        opened = bytearray()
        offset = 0
        while len(self._buffer) - offset >= _HEAD.size:
            head = bytes(self._buffer[offset : offset + _HEAD.size])
            length, number = _HEAD.unpack(head)
            if not 0 < length <= MOST_PAYLOAD or number != self._number:
                raise FrameError(f"record {number} of {length} bytes came where number {self._number} was due")
            start = offset + _HEAD.size + PROOF_BYTES
            if len(self._buffer) < start + length:
                break
            payload = bytes(self._buffer[start : start + length])
            if not hmac.compare_digest(bytes(self._buffer[start - PROOF_BYTES : start]), proof(self._key, head, payload)):
                raise FrameError(f"record {number} has a wrong seal")
            opened += payload
            self._number += 1
            offset = start + length
        del self._buffer[:offset]
        return bytes(opened)
