"""One engine of a group that runs on another machine: a worker brings it, sealed records carry its messages."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from headrace.engine.identity import difference
from headrace.engine.relocation_wire import Dismissed, EngineMessage, WorkerRole
from headrace.engine.sealing import Opener, Seal
from headrace.engine.settings import EngineSettings
from headrace.engine.transport import READ_BYTES, FrameError, Outbound
from headrace.engine.wire import Failed, Instance, Ready, Start
from headrace.instances.hall import Hall, Joiner
from headrace.instances.member import Member, MemberEvents
from headrace.placement.roles import Role
from headrace.scheduling.settings import SchedulingSettings

logger = logging.getLogger("headrace.instances.remote_member")


DISMISSED_SECONDS = 5.0
"""A worker that is told to go has so long until the connection is cut."""


class RemoteMember(Member):
    """A member whose process is on another machine. ``address`` is known once it has joined.

    ``identity``: what its engine must have loaded. A worker that has something else, or can't load, is dismissed, and the next
    one awaited; the member is lost only when one that serves is.
    """

    def __init__(self, number: int, events: MemberEvents, hall: Hall, identity: str) -> None:
        super().__init__(number, "", events, ())
        self._hall = hall
        self._identity = identity
        self._role: Role | None = None
        self._joiner: Joiner | None = None
        self._seal: Seal | None = None
        self._task: asyncio.Task[None] | None = None

    async def launch(
        self, settings: EngineSettings, scheduling: SchedulingSettings | None = None, instance: Instance | None = None
    ) -> None:
        """Wait in the background for a worker that joins, and tell it what to load."""
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._task = loop.create_task(self._run(Start(settings, scheduling or SchedulingSettings(), instance)))

    def kill(self) -> None:
        """Cut the connection; the worker ends its engine when it notices."""
        if self._joiner is not None:
            self._joiner.writer.transport.abort()

    async def stop(self) -> int | None:
        """Cut the connection, or wait for no worker any more. Open streams raise ``engine_dead``."""
        self._leaving = True
        if self._task is not None:
            self.kill()
            if self._joiner is None:
                self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        return None

    async def _wait_exit(self, timeout: float | None) -> bool:
        if self._task is None:
            return True
        if self._joiner is None:
            self._task.cancel()
        done, _ = await asyncio.wait([self._task], timeout=timeout)
        return bool(done)

    def _write(self, frame: bytes) -> None:
        if self._joiner is not None and self._seal is not None and not self._joiner.writer.is_closing():
            self._joiner.writer.write(self._seal.close(frame))

    async def _run(self, start: Start) -> None:
        reason = "the server ends"
        try:
            while self._ready is None and not self._leaving:
                self._joiner = await self._hall.next()
                self.address = self._joiner.pages
                self._seal = Seal(self._joiner.keys.to_engine)
                self._role = None
                logger.info("instance %d has joined from %s", self.number, self.address)
                self._send(start)
                reason = await self._listen(self._joiner)
                self._joiner.writer.close()
        finally:
            if self._joiner is not None:
                self._joiner.writer.close()
            self._lost(reason)
            if self._started is not None and self._started.done() and not self._started.cancelled():
                self._started.exception()  # whoever waits has heard it; nobody may be waiting

    async def _listen(self, joiner: Joiner) -> str:
        opener, inbound = Opener(joiner.keys.to_api), Outbound()
        try:
            while data := await joiner.reader.read(READ_BYTES):
                for message in inbound.feed(opener.feed(data)):
                    if self._ready is None and not await self._fits(message, joiner):
                        return "the engine's machine has something else"
                    self._handle(message)
        except FrameError as error:
            self._hall.refusals.note("broken", f"instance {self.number} at {joiner.pages} sent what it had not sealed: {error}")
        except OSError as error:
            logger.info("connection to instance %d has ended: %s", self.number, error)
        return "the connection to the engine's machine has ended"

    async def _fits(self, message: EngineMessage, joiner: Joiner) -> bool:
        """What an engine says first: False when it can't serve here, which both sides are told."""
        if isinstance(message, Failed):
            self._hall.refusals.note("load", f"the engine of {joiner.pages} could not load: {message.message}")
            return False
        if isinstance(message, WorkerRole):
            self._role = message.role
        if not isinstance(message, Ready):
            return True
        other = difference(self._identity, message.identity)
        if other is None:
            if self._role is not None:
                self._events.takes(self, self._role)
            return True
        reason, text = other
        self._hall.refusals.note(reason, f"the engine of {joiner.pages} does not fit: {text}")
        self._send(Dismissed("model_file", text))
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(DISMISSED_SECONDS):
                while await joiner.reader.read(READ_BYTES):  # what comes unread would cut the connection before it has heard
                    pass
        return False
