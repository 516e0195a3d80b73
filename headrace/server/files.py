"""Handlers of files: upload, list, look at, read, delete."""

from __future__ import annotations

import asyncio
from typing import Any, BinaryIO
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.server.hub import Hub
from headrace.server.paging import page
from headrace.server.protocol.files import FileDeleted, FileList, FileObject, FileQuery
from headrace.server.rendering import json_response
from headrace.server.requests import ABORT, GONE, Call, ClientGone, HangupGuard
from headrace.server.storage.file_store import StoredFile
from headrace.server.uploads import receive

_PAGE = 10_000
_PIECE = 1 << 18


async def upload(hub: Hub, call: Call[Any]) -> Response:
    """``POST /files``."""
    return json_response(_shown(await receive(call.request, call.tenant, hub.desk().files, hub.settings)))


async def list_files(hub: Hub, call: Call[Any]) -> Response:
    """``GET /files``."""
    query: FileQuery = call.query
    files = [file for file in hub.desk().files.of(call.tenant) if query.purpose in (None, file.purpose)]
    if query.order != "asc":
        files.reverse()
    found, more = page(files, query.after, query.limit or _PAGE)
    ends = (found[0].id, found[-1].id) if found else (None, None)
    return json_response(FileList([_shown(file) for file in found], more, *ends))


async def show(hub: Hub, call: Call[Any]) -> Response:
    """``GET /files/{id}``."""
    return json_response(_shown(hub.desk().files.find(call.path["id"], call.tenant)))


async def delete(hub: Hub, call: Call[Any]) -> Response:
    """``DELETE /files/{id}``."""
    store = hub.desk().files
    file = store.find(call.path["id"], call.tenant)
    await store.delete(file)
    return json_response(FileDeleted(file.id))


async def content(hub: Hub, call: Call[Any]) -> ASGIApp:
    """``GET /files/{id}/content``. The bytes are compared with their sum before the first one is sent."""
    store = hub.desk().files
    file = store.find(call.path["id"], call.tenant)
    path = await store.verified(file)
    store.find(file.id, call.tenant)  # it may have gone meanwhile
    return _Content(file, path.open("rb"), hub.settings.send_timeout)


def _shown(file: StoredFile) -> FileObject:
    return FileObject(file.id, file.bytes, file.created_at, file.filename, file.purpose, file.expires_at, file.sha256)


class _Content:
    """An answer of a file's bytes, read piece by piece on a thread. A client that reads nothing for too long is let go."""

    def __init__(self, file: StoredFile, source: BinaryIO, patience: float) -> None:
        self._file = file
        self._source = source
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(self._file.bytes).encode("ascii")),
            (b"content-disposition", f"attachment; filename*=utf-8''{quote(self._file.filename, safe='')}".encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
        ]
        with self._source:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                async with HangupGuard(receive):
                    await self._send(send)
            except ClientGone:
                scope[GONE] = True
            except TimeoutError:
                scope[GONE] = True
                scope[ABORT]()

    async def _send(self, send: Send) -> None:
        left = self._file.bytes
        while left:
            piece = await asyncio.to_thread(self._source.read, min(_PIECE, left))
            left = left - len(piece) if piece else 0
            async with asyncio.timeout(self._patience):
                await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
