"""Reading an upload: form fields under limits, the file's bytes straight to the disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from headrace.errors import HeadraceError
from headrace.server.multipart import FormParser, PartBegin, PartData, PartEnd, boundary_of
from headrace.server.protocol.decode import checked
from headrace.server.protocol.files import Upload
from headrace.server.requests import ClientGone, declared_length
from headrace.server.settings import ServerSettings
from headrace.server.storage.file_store import FileStore, Incoming, NewFile, StoredFile

_MOST_FIELDS = 8
_MOST_FIELD_BYTES = 1024
_FORM_BYTES = 65_536  # for all that is not the file
_LEAST_RATE = 16_384.0
"""Bytes a second that an upload must reach on the whole: whoever dribbles holds a connection and a place."""


class _Form:
    """The fields of one upload as they arrive."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._field: str | None = None
        self._value = bytearray()
        self._fields: dict[str, str] = {}
        self.filename: str | None = None

    async def take(self, event: PartBegin | PartData | PartEnd) -> None:
        """Take the next event of the form."""
        if isinstance(event, PartBegin):
            self._begin(event)
        elif isinstance(event, PartData):
            if self._field == "file":
                await self._incoming.write(event.data)
                return
            self._value += event.data
            if len(self._value) > _MOST_FIELD_BYTES:
                raise HeadraceError("invalid_value", f"A form field has more than {_MOST_FIELD_BYTES} bytes.", param=self._field)
        else:
            self._end()

    def _begin(self, part: PartBegin) -> None:
        name = part.name[:64]
        if name in self._fields or (name == "file" and self.filename is not None) or len(self._fields) >= _MOST_FIELDS:
            raise HeadraceError("invalid_value", "A form field comes twice, or there are too many.", param=name)
        if name == "file":
            if not part.filename:
                raise HeadraceError("invalid_value", "'file' must be a file with a name.", param="file")
            self.filename = part.filename.replace("\\", "/").rsplit("/", 1)[-1]
        self._field = name
        self._value.clear()

    def _end(self) -> None:
        assert self._field is not None
        if self._field != "file":
            try:
                self._fields[self._field] = self._value.decode("utf-8")
            except UnicodeDecodeError:
                raise HeadraceError("invalid_value", "A form field is not UTF-8.", param=self._field) from None
        self._field = None

    def upload(self) -> Upload:
        """The fields, checked."""
        plain: dict[str, Any] = {}
        for name, value in self._fields.items():
            outer, bracket, inner = name.partition("[")
            in_part = bool(bracket) and inner.endswith("]")
            inside = plain.setdefault(outer if in_part else name, {} if in_part else value)
            if isinstance(inside, dict) != in_part:
                raise HeadraceError("invalid_value", f"'{outer}' is given both whole and by parts.", param=outer)
            if in_part:
                inside[inner[:-1]] = value
        if self.filename is not None:
            plain["file"] = self.filename
        return checked(plain, Upload)


async def receive(request: Request, tenant: str, store: FileStore, settings: ServerSettings) -> StoredFile:
    """Read an upload and keep its file. Whatever goes wrong on the way, nothing of it stays."""
    declared = declared_length(request)
    if declared > store.limits.file_bytes + _FORM_BYTES:
        raise HeadraceError("body_too_large", f"The file is larger than {store.limits.file_bytes >> 20:,} MiB.", param="file")
    parser = FormParser(boundary_of(request.headers.get("content-type", "")))
    async with store.begin(tenant, declared) as incoming:
        form = _Form(incoming)
        total = 0
        async for piece in _pieces(request, settings.body_timeout):
            total += len(piece)
            for event in parser.feed(piece):
                await form.take(event)
            if total > incoming.size + _FORM_BYTES + len(piece):
                raise HeadraceError("invalid_value", "The form has too many bytes beside its file.")
        if not parser.complete:
            raise HeadraceError("invalid_value", "The form ends too soon.")
        upload = form.upload()
        if not incoming.size:
            raise HeadraceError("invalid_value", "The file is empty.", param="file")
        lifetime = upload.expires_after.seconds if upload.expires_after is not None else None
        return await incoming.keep(NewFile(upload.file, upload.purpose, tenant, lifetime))


async def _pieces(request: Request, patience: float) -> AsyncIterator[bytes]:
    """The body's pieces. Raises ``body_timeout`` when one takes too long to come, or all of them together."""
    began, total = time.monotonic(), 0
    while True:
        try:
            async with asyncio.timeout(min(patience, began + patience + total / _LEAST_RATE - time.monotonic())):
                message = await request.receive()
        except TimeoutError:
            raise HeadraceError("body_timeout", "The file did not arrive in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        total += len(piece)
        yield piece
        if not message.get("more_body", False):
            return
