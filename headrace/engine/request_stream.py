"""What one request gets, as a stream for an asyncio program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from headrace.engine.wire import TokenOutput
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.engine.client import EngineClient


class RequestStream(AsyncIterator[list[TokenOutput]]):
    """What one request gets, as it comes: each ``async for`` turn yields everything since the last one.

    A turn is a non-empty list of :class:`TokenOutput` in the order of the steps, of any of the request's choices; one
    wake-up a step, never one a token. The stream ends after every choice (``params.n``; 1 for an embedding) has had
    its output with ``finish`` set. Raises HeadraceError when the engine refuses the request (its row of the error
    table) or dies (``engine_dead``). As ``async with stream:`` it cancels on the way out whatever has not finished.
    """

    def __init__(self, client: EngineClient, request_id: int, choices: int) -> None:
        self.request_id = request_id
        self._client = client
        self._open = set(range(choices))
        self._ready: list[TokenOutput] = []
        self._error: HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """True when nothing more will arrive (what has arrived may still be unread)."""
        return not self._open or self._error is not None

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> list[TokenOutput]:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        outputs, self._ready = self._ready, []
        return outputs

    def cancel(self, choice: int | None = None) -> None:
        """Stop one choice or (``None``) the whole request; the engine frees its pages within one step.

        Nothing more is delivered for what was cancelled, not even outputs that were under way. Calling it again, or
        after the end, does nothing.
        """
        stopped = self._open & ({choice} if choice is not None else self._open)
        if self.finished or not stopped:
            return
        self._open -= stopped
        self._ready = [output for output in self._ready if output.choice not in stopped]
        self._client._send_cancel(self.request_id, choice if self._open else None)
        self._settle()

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def _push(self, output: TokenOutput) -> None:
        if output.choice not in self._open:
            return
        if output.finish is not None:
            self._open.discard(output.choice)
        self._ready.append(output)
        self._settle()

    def _fail(self, error: HeadraceError) -> None:
        if not self.finished:
            self._error = error
            self._settle()

    def _settle(self) -> None:
        if self.finished:
            self._client._forget(self.request_id)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
