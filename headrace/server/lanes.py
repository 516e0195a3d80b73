"""How many calls without a waiting client run at a time: many on an idle server, one beside others' requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_LOOK_SECONDS = 0.1


class Lanes:
    """Places for such calls, given out in the order in which they were asked for. ``online``: requests that clients wait for.

    Narrowing does not stop what runs: it ends, and nothing follows.
    """

    def __init__(self, online: Callable[[], int], idle: int = 16, busy: int = 1) -> None:
        self._online = online
        self._idle = idle
        self._busy = busy
        self._taken = 0
        self._door = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def width(self) -> int:
        """Places that there are now."""
        return self._busy if self._online() else self._idle

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place while the block runs."""
        async with self._door:
            while self._taken >= self.width:
                self._freed.clear()
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):  # online requests end without telling us
                        await self._freed.wait()
                except TimeoutError:
                    continue
            self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._freed.set()
