"""One engine process of a group, seen from the group."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from headrace.engine.client import EngineClient
from headrace.engine.relocation_wire import (
    Adopt,
    Adopted,
    Departed,
    EngineMessage,
    Expected,
    Leaving,
    Ping,
    Pong,
    RelocationCall,
    RelocationNews,
    Stays,
)
from headrace.engine.training_wire import TrainingEvent
from headrace.engine.wire import AdapterAnswer, AdapterCall, AdapterList, Refused, StepOutputs, Submit
from headrace.placement.load import Load
from headrace.placement.roles import Role


class MemberEvents(Protocol):
    """What a group hears of its members."""

    def outputs(self, member: Member, message: StepOutputs) -> None:
        """A step has ended."""

    def refused(self, member: Member, message: Refused) -> None:
        """A request can't run."""

    def news(self, member: Member, message: RelocationNews) -> None:
        """A request comes or goes."""

    def trained(self, member: Member, message: TrainingEvent) -> None:
        """Something has become of a job."""

    def takes(self, member: Member, role: Role) -> None:
        """A worker that begins to serve says which work it is there for."""

    def lost(self, member: Member) -> None:
        """The process has ended, or its connection."""

    async def prepare(self, member: Member) -> None:
        """A process that was started again is about to serve. Raises HeadraceError when it can't."""


class Member(EngineClient):
    """An engine process whose outputs go to its group's streams. ``number``: which instance it is; ``address``: of its pages.

    ``heard``: when it last said anything. ``generations``: of adapters, by those that the group names.
    """

    def __init__(self, number: int, address: str, events: MemberEvents, command: Sequence[str]) -> None:
        super().__init__(command=command)
        self.number = number
        self.address = address
        self.heard = time.monotonic()
        self.pinged = 0.0
        self.leaving = False
        self.informed = False  # it knows all adapters of the group
        self.generations: dict[int, int] = {}
        self.used: set[int] = set()  # of the group's generations, those of requests that were sent here
        self.page_refusals: dict[str, int] = {}  # connections that it has turned away where it takes pages
        self._events = events
        self._pings = 0
        self._given = 0
        self._unseen: deque[tuple[int, int]] = deque()  # requests that its gauges don't count yet: (which one, its pages)

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return self._process.pid if self._process is not None else None

    def load(self) -> Load:
        """Its load, requests on their way to it included."""
        gauges, load, ready = self._gauges, self._gauges.load, self._ready
        total = ready.pages_total if ready is not None else 0
        unseen = sum(pages for _, pages in self._unseen)
        if load is None:
            return Load(total, running=0, waiting=len(self._unseen), head=unseen, queue=unseen, leaving=self.leaving)
        return Load(
            total, held=total - load.available, running=gauges.running, waiting=gauges.waiting + len(self._unseen),
            head=load.head_pages, queue=load.queue_pages + unseen, urgent=load.urgent, leaving=self.leaving,
        )  # fmt: skip

    def give(self, message: Submit | Adopt, pages: int) -> None:
        """Send a request that will need so many pages at first."""
        self._given += 1
        self._unseen.append((self._given, pages))
        self._send(message)

    def tell(self, call: RelocationCall) -> None:
        """Send a call about a request that comes or goes."""
        self._send(call)

    def cancel_request(self, request_id: int, choice: int | None) -> None:
        """Stop a request or one choice of it; unknown ones are ignored."""
        self._send_cancel(request_id, choice)

    async def ask(self, call: AdapterCall) -> AdapterAnswer | AdapterList:
        """A call about adapters, and this engine's answer. Raises ``engine_dead``."""
        return await self._call(call)

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self.pinged <= self.heard:
            self.pinged = time.monotonic()
            self._pings += 1
            self._send(Ping(self._pings))

    def silent_for(self) -> float:
        """Seconds for which a ping has had no answer."""
        return time.monotonic() - self.pinged if self.pinged > self.heard else 0.0

    def kill(self) -> None:
        """End the process at once, whatever it does; the group hears that it is lost."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _handle(self, message: EngineMessage) -> None:
        self.heard = time.monotonic()
        match message:
            case StepOutputs():
                self._see(message)
                if message.report is not None:
                    self._reports.append(message.report)
                self._events.outputs(self, message)
            case Pong():
                self._see(message)
                self.page_refusals = message.refused
            case Refused():
                self._events.refused(self, message)
            case Leaving() | Stays() | Expected() | Departed() | Adopted():
                self._events.news(self, message)
            case _ if isinstance(message, TrainingEvent):
                self._events.trained(self, message)
            case _:
                super()._handle(message)

    def _see(self, message: StepOutputs | Pong) -> None:
        self._gauges = message.gauges
        taken = message.gauges.load.taken if message.gauges.load is not None else self._given
        while self._unseen and self._unseen[0][0] <= taken:
            self._unseen.popleft()

    def _lost(self, reason: str) -> None:
        if self._dead is None:
            super()._lost(reason)
            self._events.lost(self)
