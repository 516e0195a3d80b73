"""Responses that no connection waits for: run in the background, followed by whoever asks, kept when they have ended."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import msgspec

from headrace.errors import HeadraceError
from headrace.server.protocol.responses import ResponseFault
from headrace.server.rendering import internal_error
from headrace.server.response_turn import ResponseTurn
from headrace.server.storage.disk import Scribe, to_the_end
from headrace.server.storage.folder import StateFolder
from headrace.server.storage.response_store import ENDED, KeptResponse, ResponseStore

logger = logging.getLogger("headrace.server.responses")
MOST_RUNNING = 64
"""Background responses of one tenant at a time."""

_MOST_FOLLOWED = 64  # ended ones whose events can still be read again


@dataclass(slots=True, eq=False)
class BackgroundRun:
    """One response that runs by itself; ``events[n]`` has the sequence number *n*."""

    kept: KeptResponse
    turn: ResponseTurn
    events: list[bytes] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    @property
    def now(self) -> KeptResponse:
        """The response as it is now."""
        return msgspec.structs.replace(self.kept, response=self.turn.writer.response)

    @property
    def ended(self) -> bool:
        """True when nothing more will come."""
        return self.task is not None and self.task.done()

    def tell(self, events: list[bytes]) -> None:
        """Events have been made."""
        self.events += events
        self.changed.set()
        self.changed = asyncio.Event()


class ResponseDesk:
    """Background responses and the store of all. Only the event loop touches its tables."""

    def __init__(self, folder: StateFolder, scribe: Scribe) -> None:
        self.store = ResponseStore(folder, scribe)
        self._runs: OrderedDict[str, BackgroundRun] = OrderedDict()
        self._beginning: Counter[str] = Counter()  # of each tenant, those that are being written down

    async def start(self) -> None:
        """Say of what an earlier server had begun that it won't end."""
        fault = ResponseFault("server_error", "The server ended before this response did; ask again.")
        for kept in self.store.unfinished():
            failed = msgspec.structs.replace(kept.response, status="failed", error=fault)
            await self.store.keep(msgspec.structs.replace(kept, response=failed))

    async def close(self) -> None:
        """Stop what runs."""
        tasks = [run.task for run in self._runs.values() if run.task is not None and not run.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check_room(self, tenant: str) -> None:
        """Raise ``queue_full`` when the tenant has as many background responses as it may."""
        running = sum(run.kept.tenant == tenant and not run.ended for run in self._runs.values())
        if running + self._beginning[tenant] >= MOST_RUNNING:
            raise HeadraceError("queue_full", f"{MOST_RUNNING} background responses of this key are running, which is the limit.")

    async def begin(self, kept: KeptResponse, turn: ResponseTurn, held: AsyncExitStack) -> BackgroundRun:
        """Run a response; ``held`` is closed when it has ended, or can't begin. Raises ``queue_full`` or ``storage_full``."""
        return await to_the_end(self._begin(kept, turn, held))

    async def _begin(self, kept: KeptResponse, turn: ResponseTurn, held: AsyncExitStack) -> BackgroundRun:
        async with AsyncExitStack() as until_it_runs:
            until_it_runs.push_async_exit(held)
            self.check_room(kept.tenant)  # others may have come since the handler asked
            self._beginning[kept.tenant] += 1
            try:
                await self.store.keep(kept)
            finally:
                self._beginning[kept.tenant] -= 1
            until_it_runs.pop_all()
        run = BackgroundRun(kept, turn)
        run.task = asyncio.create_task(self._work(run, held))
        self._runs[kept.response.id] = run
        for old in [name for name, one in self._runs.items() if one.ended][: max(0, len(self._runs) - _MOST_FOLLOWED)]:
            del self._runs[old]
        return run

    def find(self, response_id: str, tenant: str) -> KeptResponse:
        """A response as it is now. Raises ``response_not_found``."""
        kept = self.store.find(response_id, tenant)
        run = self._runs.get(response_id)
        return run.now if run is not None and not run.ended else kept

    def follow(self, response_id: str, tenant: str, after: int) -> Following:
        """The events behind number ``after``. Raises ``response_not_found``, and ``invalid_value`` where they are gone."""
        self.store.find(response_id, tenant)
        run = self._runs.get(response_id)
        if run is None:
            message = "Only the events of background responses can be read again, for a while; ask without 'stream'."
            raise HeadraceError("invalid_value", message, param="stream")
        return Following(run, after + 1)

    async def cancel(self, response_id: str, tenant: str) -> KeptResponse:
        """End a background response early; one that has ended stays as it is. Raises ``response_not_found``, ``invalid_value``."""
        kept = self.store.find(response_id, tenant)
        if not kept.response.background:
            raise HeadraceError("invalid_value", "Only background responses can be cancelled.", param="id")
        run = self._runs.get(response_id)
        if run is not None and run.task is not None and not run.task.done():
            run.cancelled = True
            run.task.cancel()
            await asyncio.wait([run.task])
        return self.find(response_id, tenant)

    async def delete(self, response_id: str, tenant: str) -> None:
        """Forget a response, wherever it stands. Raises ``response_not_found``."""
        kept = self.store.find(response_id, tenant)
        if kept.response.background:
            await self.cancel(response_id, tenant)
        self._runs.pop(response_id, None)
        await self.store.delete(self.store.find(response_id, tenant))

    async def _work(self, run: BackgroundRun, held: AsyncExitStack) -> None:
        writer = run.turn.writer
        try:
            async with held, run.turn as turns:
                async for events in turns:
                    run.tell(events)
            return
        except asyncio.CancelledError:
            if not run.cancelled:  # the server ends: the next one says so
                raise
            last = writer.cancel() if writer.response.status not in ENDED else None
        except HeadraceError as error:
            last = writer.fail(error)
        except Exception:
            logger.exception("response %s failed", run.kept.response.id)
            last = writer.fail(internal_error())
        await self.store.keep(run.now)
        run.tell([last] if last is not None else [])


class Following:
    """The events of a run as they come, from one number on; ``async with`` and iterate, as a stream wants it."""

    def __init__(self, run: BackgroundRun, start: int) -> None:
        self._run = run
        self._next = start

    async def __aenter__(self) -> Following:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __aiter__(self) -> AsyncIterator[list[bytes]]:
        return self

    async def __anext__(self) -> list[bytes]:
        run = self._run
        while self._next >= len(run.events):
            if run.ended:
                raise StopAsyncIteration
            changed = asyncio.ensure_future(run.changed.wait())
            assert run.task is not None
            try:
                await asyncio.wait([changed, run.task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
        events = run.events[self._next :]
        self._next += len(events)
        return events
