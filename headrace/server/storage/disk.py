"""Writing so that a crash leaves the old state or the new one, and a full disk leaves one clear refusal."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import HeadraceError

Result = TypeVar("Result")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


def will_pass(error: Exception) -> bool:
    """True for a full disk and for a want of files or memory: what lasts waits for them, and nothing is lost."""
    if isinstance(error, HeadraceError):
        return error.code == "storage_full"
    return isinstance(error, OSError) and error.errno in _FULL | _SHORT


async def to_the_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Do it even when whoever waits for it goes away: the disk and the tables must not come to say two things."""
    return await asyncio.shield(asyncio.ensure_future(work))


@contextmanager
def full_disk_refused() -> Iterator[None]:
    """Turn a full disk into ``storage_full``; other faults of the disk go on as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise HeadraceError("storage_full", "The server's disk is full; nothing of this was kept.") from error
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content: after a crash it is the old one or the new one. Raises ``storage_full``."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with full_disk_refused(), fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Scribe:
    """One thread for all small writes: they keep the event loop free, and happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-state")

    async def do(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` after all earlier ones. It is done even when whoever waits for it is cancelled."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def close(self) -> None:
        """Wait for what has been asked for."""
        self._thread.shutdown(wait=True)
