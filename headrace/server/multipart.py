"""Form bodies (``multipart/form-data``), taken apart while they arrive: no part is ever whole in memory."""

from __future__ import annotations

import email.message
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.errors import HeadraceError

_MOST_HEADER_BYTES = 8192
_PLAIN_ENCODINGS = ("", "binary", "7bit", "8bit")


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins: the field's name, and the file's name when it is a file."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the current part."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The current part is complete."""


Event = PartBegin | PartData | PartEnd


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names. Raises ``invalid_value`` when it is no form."""
    message = email.message.Message()
    message["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    try:
        boundary = message.get_param("boundary")
    except ValueError:  # continuations with endless numbers
        boundary = None
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise HeadraceError("invalid_value", "The body must be multipart/form-data with a boundary.")
    if not (0 < len(boundary) <= 70 and boundary.isascii() and boundary.isprintable()):
        raise HeadraceError("invalid_value", "The form's boundary must be 1 to 70 visible ASCII characters.")
    return boundary.encode("ascii")


class FormParser:
    """Turns pieces of a form body into events, however the body was cut into pieces."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # so that the first delimiter looks like all others
        self._state = "preamble"

    @property
    def complete(self) -> bool:
        """True when the closing delimiter has come."""
        return self._state == "end"

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes. Raises ``invalid_value`` for what is no form."""
        self._buffer += data
        while True:
            if self._state == "preamble":
                if not self._skip_to_first():
                    return
            elif self._state == "delimiter":
                if not self._after_delimiter():
                    return
            elif self._state == "headers":
                end = self._buffer.find(b"\r\n\r\n")
                if end > _MOST_HEADER_BYTES or (end < 0 and len(self._buffer) > _MOST_HEADER_BYTES):
                    raise _broken(f"a part's headers are over {_MOST_HEADER_BYTES} bytes")
                if end < 0:
                    return
                head = bytes(self._buffer[:end])
                del self._buffer[: end + 4]
                self._state = "body"
                yield _part(head)
            elif self._state == "body":
                piece, ended = self._body()
                if piece:
                    yield PartData(piece)
                if not ended:
                    return
                yield PartEnd()
            else:
                self._buffer.clear()
                return

    def _skip_to_first(self) -> bool:
        if len(self._buffer) < len(self._delimiter):
            return False
        if not self._buffer.startswith(self._delimiter):
            raise _broken("it does not begin with the boundary")
        del self._buffer[: len(self._delimiter)]
        self._state = "delimiter"
        return True

    def _after_delimiter(self) -> bool:
        if len(self._buffer) < 2:
            return False
        mark = bytes(self._buffer[:2])
        if mark not in (b"--", b"\r\n"):
            raise _broken("a boundary is followed by something else than a line end")
        del self._buffer[:2]
        self._state = "end" if mark == b"--" else "headers"
        return True

    def _body(self) -> tuple[bytes, bool]:
        """What is certainly the part's, and whether the part ends behind it."""
        at = self._buffer.find(self._delimiter)
        ended = at >= 0
        size = at if ended else max(0, len(self._buffer) - len(self._delimiter) + 1)
        piece = bytes(self._buffer[:size])
        del self._buffer[: size + (len(self._delimiter) if ended else 0)]
        if ended:
            self._state = "delimiter"
        return piece, ended


def _part(head: bytes) -> PartBegin:
    message = email.message.Message()
    for line in head.split(b"\r\n"):
        before, colon, behind = line.partition(b":")
        try:
            text = behind.decode("utf-8").strip()
            label = before.decode("ascii").strip().lower()
        except UnicodeDecodeError:
            raise _broken("a part's headers are not UTF-8") from None
        if not colon or not label or label in message or not text.isprintable():
            raise _broken("a part's header is no 'name: value', or comes twice")
        message[label] = text
    try:
        name, filename = message.get_param("name", header="content-disposition"), message.get_filename()
    except ValueError:  # continuations with endless numbers, encodings that can't decode
        raise _broken("a part's name can't be read") from None
    if message.get("content-disposition", "").split(";")[0].strip().lower() != "form-data" or not isinstance(name, str):
        raise _broken("a part has no name")
    if message.get("content-transfer-encoding", "").lower() not in _PLAIN_ENCODINGS:
        raise _broken("a part's bytes are encoded")
    if filename is not None and not filename.isprintable():  # what was spelt in escapes may hold line ends or half characters
        raise _broken("a file's name has characters that can't be shown")
    return PartBegin(name, filename)


def _broken(problem: str) -> HeadraceError:
    return HeadraceError("invalid_value", f"The form is broken: {problem}.")
