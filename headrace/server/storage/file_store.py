"""Files that clients uploaded and that batches and jobs made: whole or not at all, each its owner's alone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from headrace.errors import HeadraceError
from headrace.server.identity import new_id
from headrace.server.storage.disk import Scribe, full_disk_refused, sync_folder
from headrace.server.storage.folder import StateFolder
from headrace.server.storage.records import Records

logger = logging.getLogger("headrace.server.storage")
_SLICE = 1 << 20
_RESERVE = 64 << 20  # bytes that uploads leave free on the disk, so that records and journals can still be written


class StoredFile(msgspec.Struct, frozen=True):
    """One kept file. ``tenant``: whose it is; times in seconds since 1970."""

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    tenant: str
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Bounds: bytes of a file, bytes and number of files of one tenant, and uploads at a time, of one tenant and of all."""

    file_bytes: int
    tenant_bytes: int
    tenant_files: int
    tenant_uploads: int = 4
    uploads: int = 16


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is known of a file that is about to be kept. ``lifetime`` in seconds; ``file_id``: a name chosen before."""

    filename: str
    purpose: str
    tenant: str
    lifetime: int | None = None
    file_id: str | None = None


class FileStore:
    """All files. Only the event loop touches its tables; bytes are moved on threads."""

    def __init__(self, folder: StateFolder, limits: FileLimits, scribe: Scribe) -> None:
        self.limits = limits
        self._data = folder.room("files")
        self._incoming = folder.room("incoming")
        self._records = Records(folder.room("file_records"), StoredFile)
        self._scribe = scribe
        self._uploads: Counter[str] = Counter()
        self._arriving: Counter[str] = Counter()  # bytes
        self._users: list[Callable[[str], bool]] = []
        for path in self._incoming.iterdir():
            path.unlink()
        self._files = self._records.read()
        for name, file in list(self._files.items()):
            path = self._data / name
            if not path.is_file() or path.stat().st_size != file.bytes:
                logger.warning("the bytes of %s are gone or cut short; it is dropped", name)
                self._records.remove(name)
                del self._files[name]
        for path in self._data.iterdir():
            if path.name not in self._files:
                path.unlink()

    def find(self, file_id: str, tenant: str) -> StoredFile:
        """A file of this tenant. Raises ``file_not_found``, also for those of others."""
        file = self._files.get(file_id)
        if file is None or file.tenant != tenant or (_expired(file) and not self._in_use(file)):
            raise HeadraceError("file_not_found", "No file with this id exists.", param="id")
        return file

    def of(self, tenant: str) -> list[StoredFile]:
        """A tenant's files, oldest first."""
        own = (file for file in self._files.values() if file.tenant == tenant and not _expired(file))
        return sorted(own, key=lambda file: (file.created_at, file.id))

    def totals(self) -> tuple[int, int]:
        """(files, bytes) of all tenants."""
        return len(self._files), sum(file.bytes for file in self._files.values())

    def has(self, file_id: str) -> bool:
        """True when this file is kept, whoever's it is."""
        return file_id in self._files

    def path(self, file: StoredFile) -> Path:
        """Where its bytes lie."""
        return self._data / file.id

    async def verified(self, file: StoredFile) -> Path:
        """Where its bytes lie, after they were read and found unchanged. Raises ``file_damaged``."""
        path = self.path(file)
        if await asyncio.to_thread(digest_of, path) != file.sha256:
            raise HeadraceError("file_damaged", f"The bytes of {file.id} have changed on the server's disk; upload it again.")
        return path

    def check_room(self, tenant: str) -> None:
        """Raise ``quota_exceeded`` for a tenant that has all it may have: what it begins now would only make more."""
        own, most = self.of(tenant), self.limits
        if len(own) >= most.tenant_files or sum(file.bytes for file in own) >= most.tenant_bytes:
            message = f"The files of this key fill what it may keep ({most.tenant_files:,}, {most.tenant_bytes >> 20:,} MiB)"
            raise HeadraceError("quota_exceeded", f"{message}, results among them; delete some.")

    def used_by(self, uses: Callable[[str], bool]) -> None:
        """Ask ``uses`` before a file goes: what it is true of stays, however old it is."""
        self._users.append(uses)

    def _in_use(self, file: StoredFile) -> bool:
        return any(uses(file.id) for uses in self._users)

    async def delete(self, file: StoredFile) -> None:
        """Drop a file. Raises ``state_conflict`` while a batch or job reads it."""
        if self._in_use(file):
            raise HeadraceError("state_conflict", f"{file.id} is in use by a batch or job that has not ended.", param="id")
        if self._files.pop(file.id, None) is not None:
            await self._scribe.do(lambda: self._drop(file))

    def _drop(self, file: StoredFile) -> None:
        self._records.remove(file.id)
        self.path(file).unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Drop the files that have expired."""
        for file in list(self._files.values()):
            if _expired(file) and not self._in_use(file):
                await self.delete(file)

    def begin(self, tenant: str, expected_bytes: int = 0) -> Incoming:
        """Somewhere to write a new file of this tenant. Raises ``quota_exceeded``, ``queue_full`` or ``storage_full``."""
        if self._uploads[tenant] >= self.limits.tenant_uploads or self._uploads.total() >= self.limits.uploads:
            raise HeadraceError("queue_full", "Too many files are being uploaded; wait for one to end.")
        if len(self.of(tenant)) + self._uploads[tenant] >= self.limits.tenant_files:
            message = f"This key may keep {self.limits.tenant_files:,} files; delete some."
            raise HeadraceError("quota_exceeded", message)
        if shutil.disk_usage(self._data).free < expected_bytes + _RESERVE:
            raise HeadraceError("storage_full", "The server's disk is full; nothing of this was kept.")
        return Incoming(self, tenant, self._incoming / new_id("upload"))

    def grow(self, tenant: str, size: int) -> None:
        """An arriving file has grown by this. Raises ``quota_exceeded`` when its tenant has no room for it."""
        self._arriving[tenant] += size
        most = self.limits.tenant_bytes
        if size > 0 and sum(file.bytes for file in self.of(tenant)) + self._arriving[tenant] > most:
            raise HeadraceError("quota_exceeded", f"The files of this key may take {most >> 20:,} MiB together; delete some.")

    def uploading(self, tenant: str, change: int) -> None:
        """One upload more or less."""
        self._uploads[tenant] += change

    async def adopt(self, path: Path, new: NewFile) -> StoredFile:
        """Keep a file that lies on the same disk, whole already: it is moved, not copied. No quota stands against it."""
        size = path.stat().st_size
        return await self.keep(path, new, size, await asyncio.to_thread(digest_of, path))

    async def keep(self, path: Path, new: NewFile, size: int, sha256: str) -> StoredFile:
        """Make a complete file one of the store: from here on it survives whatever happens to the server."""
        now = int(time.time())
        expires = now + new.lifetime if new.lifetime is not None else None
        file = StoredFile(new.file_id or new_id("file"), new.filename, new.purpose, size, sha256, now, new.tenant, expires)

        def work() -> None:
            self._records.write(file.id, file)  # a record without bytes is dropped at the next start
            try:
                path.replace(self.path(file))
            except BaseException:
                self._records.remove(file.id)
                raise
            sync_folder(self._data)

        await self._scribe.do(work)
        self._files[file.id] = file
        return file


class Incoming:
    """A file that is arriving. Use as ``async with``: what was not kept when the block ends is gone."""

    def __init__(self, store: FileStore, tenant: str, path: Path) -> None:
        self._store = store
        self._tenant = tenant
        self._path = path
        self._pieces: list[bytes] = []
        self._pending = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.size = 0

    async def __aenter__(self) -> Incoming:
        with full_disk_refused():
            self._file = open(self._path, "xb", buffering=0, opener=_private)  # noqa: SIM115  closed in __aexit__
        self._store.uploading(self._tenant, 1)
        return self

    async def write(self, piece: bytes) -> None:
        """Take the next bytes. Raises ``body_too_large``, ``quota_exceeded`` or ``storage_full``."""
        self.size += len(piece)
        if self.size > self._store.limits.file_bytes:
            message = f"The file is larger than {self._store.limits.file_bytes >> 20:,} MiB."
            raise HeadraceError("body_too_large", message, param="file")
        self._store.grow(self._tenant, len(piece))
        self._pieces.append(piece)
        self._pending += len(piece)
        if self._pending >= _SLICE:
            await self._flush()

    async def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces, self._pending = [], 0
        await asyncio.to_thread(self._put, data)

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        with full_disk_refused():
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._digest.update(data)

    async def keep(self, new: NewFile) -> StoredFile:
        """The whole file has arrived: keep it. Raises ``storage_full``."""
        await self._flush()
        file = self._file
        assert file is not None

        def settle() -> None:
            with full_disk_refused():
                os.fsync(file.fileno())

        await asyncio.to_thread(settle)
        return await self._store.keep(self._path, new, self.size, self._digest.hexdigest())

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._store.grow(self._tenant, -self.size)
        self._store.uploading(self._tenant, -1)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _expired(file: StoredFile) -> bool:
    return file.expires_at is not None and file.expires_at <= time.time()


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes. Blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
