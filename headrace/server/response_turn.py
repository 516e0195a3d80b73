"""One response being made: pieces in, events out, kept before anybody hears that it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType

from headrace.server.generation import Generation, Piece
from headrace.server.protocol.responses import ResponseObject
from headrace.server.response_writer import ResponseWriter
from headrace.server.storage.response_store import ENDED

Save = Callable[[ResponseObject], Awaitable[None]]


class ResponseTurn:
    """Use as ``async with`` and iterate: each turn is a list of events. A turn that is cancelled (by a timeout) loses nothing.

    ``save`` is waited for before the turn that ends the response is given out: who then asks for it finds it.
    """

    def __init__(self, generation: Generation, writer: ResponseWriter, save: Save) -> None:
        self.writer = writer
        self._generation = generation
        self._save = save
        self._events = writer.begin()
        self._saving: asyncio.Task[None] | None = None
        self._told = False

    async def __aenter__(self) -> ResponseTurn:
        await self._generation.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._generation.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[list[bytes]]:
        return self

    async def __anext__(self) -> list[bytes]:
        if self._told:
            raise StopAsyncIteration
        if self.writer.response.status not in ENDED:
            pieces: list[Piece] = await anext(self._generation)
            self._events += self.writer.add(pieces)
        if self.writer.response.status in ENDED:
            if self._saving is None:
                self._saving = asyncio.ensure_future(self._save(self.writer.response))
            await asyncio.shield(self._saving)
            self._told = True
        events, self._events = self._events, []
        return events
