"""The places for instances: processes that start, crash, start again, and are emptied."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from headrace.engine.identity import identity_here
from headrace.engine.machine import core_numbers, usable_cores
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Instance, Ready
from headrace.errors import HeadraceError
from headrace.instances.hall import Hall
from headrace.instances.hall_key import read_key
from headrace.instances.member import Member, MemberEvents
from headrace.instances.options import GroupOptions
from headrace.instances.ray_hall import RayHall
from headrace.instances.remote_member import RemoteMember
from headrace.instances.shape import Part, split_machine
from headrace.placement.back_off import BackOff
from headrace.placement.joining import Joining
from headrace.scheduling.settings import SchedulingSettings

logger = logging.getLogger("headrace.instances.slots")

SlotState = Literal["loading", "serving", "leaving", "drained", "waiting", "gone"]
"""``leaving``: it is being emptied. ``drained``: it is empty and takes nothing. ``waiting``: to start again after a crash.
``gone``: emptied and ended, or not wanted so far."""


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one instance, whatever process is in it. ``since``: when it began to serve."""

    number: int
    part: Part
    member: Member
    state: SlotState = "loading"
    incarnation: int = 1
    crashes: int = 0
    back_off: BackOff = field(default_factory=BackOff)
    since: float = 0.0
    task: asyncio.Task[None] | None = None


def _hall(joining: Joining) -> Hall:
    return RayHall(joining) if joining.cluster is not None else Hall(joining, read_key())


class Slots:
    """All instances of a group. ``serves`` is told when one begins to serve, ``prepare`` has it ready before that."""

    def __init__(self, options: GroupOptions, command: Sequence[str], events: MemberEvents) -> None:
        self.all: list[Slot] = []
        self._instances = options.instances
        self._first_ones = options.scaling.least if options.scaling is not None else options.instances
        self._restart_seconds = options.restart_seconds
        self.hall = _hall(options.joining) if options.joining is not None else None
        self._command = command
        self._events = events
        self._folder: Path | None = None
        self._key = secrets.token_bytes(32)
        self._told: tuple[EngineSettings, SchedulingSettings] | None = None
        self._first: Ready | None = None
        self._identity = ""  # of what instances of other machines must have

    def __getitem__(self, number: int) -> Slot:
        return self.all[number]

    def names(self) -> str:
        """Which instances there are, for refusals."""
        return f"instances are 0 to {len(self.all) - 1}"

    @property
    def serving(self) -> list[Slot]:
        """Those that take requests."""
        return [slot for slot in self.all if slot.state == "serving"]

    @property
    def living(self) -> list[Member]:
        """Engines that have loaded and not ended."""
        return [slot.member for slot in self.all if slot.member.ready is not None]

    async def launch(self, settings: EngineSettings, scheduling: SchedulingSettings) -> None:
        """Start all processes. Raises ``engine_dead``."""
        self._told = settings, scheduling
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-"))  # only this user may look into it
        parts = split_machine(self._instances, settings.threads or usable_cores(), core_numbers())
        if self.hall is not None:
            self._identity = await asyncio.to_thread(identity_here, settings)
            await (self.hall.bring(settings.threads, settings.pool_mib) if isinstance(self.hall, RayHall) else self.hall.open())
            parts = [Part(settings.threads or 0, ())] * self._instances  # 0: as many as their machines have
        self.all = [
            Slot(number, part, self._new_member(number, 1), back_off=BackOff(self._restart_seconds))
            for number, part in enumerate(parts)
        ]
        for slot in self.all[self._first_ones :]:
            slot.state = "gone"
        for slot in self.all[: self._first_ones]:
            await self._launch(slot)

    async def started(self) -> Ready:
        """Wait until every instance has loaded: one answer for all. Raises what the first that can't raises."""
        first = self.all[: self._first_ones]
        readies = await asyncio.gather(*(slot.member.started() for slot in first))
        self._first = readies[0]
        for slot, ready in zip(first, readies, strict=True):
            self._check_alike(ready, slot.number)
            slot.member.informed = True
            self._serve(slot)
        return msgspec.structs.replace(
            readies[0],
            pages_total=sum(ready.pages_total for ready in readies),
            load_seconds=max(ready.load_seconds for ready in readies),
            context_length=min(ready.context_length for ready in readies),
        )

    def start_again(self, slot: Slot, then: Callable[[Slot], object]) -> None:
        """Start an instance that has ended after a while, longer each time in a row; ``then`` when it serves."""
        slot.crashes += 1
        delay = slot.back_off.after(time.monotonic() - slot.since)
        slot.state = "waiting"
        slot.task = asyncio.get_running_loop().create_task(self._restart(slot, delay, then))

    def start(self, slot: Slot, then: Callable[[Slot], object]) -> None:
        """Start an instance whose process was ended on purpose; ``then`` when it serves."""
        slot.state = "waiting"
        slot.task = asyncio.get_running_loop().create_task(self._restart(slot, 0.0, then))

    def close(self) -> None:
        """Start nothing any more, and take the folder of the sockets away."""
        for slot in self.all:
            if slot.task is not None:
                slot.task.cancel()
        if self.hall is not None:
            self.hall.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def closed(self) -> None:
        """Wait until what brought the workers has ended too."""
        if self.hall is not None:
            await self.hall.closed()

    def _new_member(self, number: int, incarnation: int) -> Member:
        assert self._folder is not None, "the group has been launched"
        if self.hall is not None:
            return RemoteMember(number, self._events, self.hall, self._identity)
        return Member(number, str(self._folder / f"{number}-{incarnation}"), self._events, self._command)

    async def _launch(self, slot: Slot) -> None:
        assert self._told is not None, "the group has been launched"
        settings, scheduling = self._told
        if self.hall is not None:  # each has a machine of its own, and fills in what only that one knows
            instance = Instance(slot.number, [], "", b"")
            await slot.member.launch(dataclasses.replace(settings, prefix_disk_gib=None), scheduling, instance)
            return
        pool = settings.pool_mib
        settings = dataclasses.replace(
            settings,
            threads=slot.part.threads,
            pool_mib=None if pool is None else max(1, pool // self._instances),
            prefix_disk_gib=settings.prefix_disk_gib if slot.number == 0 else None,  # one process at a time may have the file
        )
        instance = Instance(slot.number, list(slot.part.cores), slot.member.address, self._key)
        await slot.member.launch(settings, scheduling, instance)

    def _serve(self, slot: Slot) -> None:
        slot.state, slot.since = "serving", time.monotonic()

    async def _restart(self, slot: Slot, delay: float, then: Callable[[Slot], object]) -> None:
        await asyncio.sleep(delay)
        slot.incarnation += 1
        slot.state = "loading"
        slot.member = self._new_member(slot.number, slot.incarnation)
        try:
            await self._launch(slot)
            self._check_alike(await slot.member.started(), slot.number)
            await self._events.prepare(slot.member)
        except HeadraceError as error:
            logger.error("instance %d could not start again: %s", slot.number, error.message)
            await slot.member.stop()
            self.start_again(slot, then)
        else:
            self._serve(slot)
            then(slot)

    def _check_alike(self, ready: Ready, number: int) -> None:
        """Instances that take requests from each other serve one model. Raises ``model_file``."""
        for name in ("model", "vocab", "hidden", "page_tokens", "identity"):
            mine, others = getattr(ready, name), getattr(self._first, name)
            if mine != others:
                message = f"instance {number} has loaded {name} {mine!r} where the others have {others!r}"
                raise HeadraceError("model_file", message, param="model")
