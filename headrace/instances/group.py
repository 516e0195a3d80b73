"""Several engine processes of one model as one engine: the same calls, the same streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from headrace.engine.client import EngineClient, RequestStream
from headrace.engine.gauge_sums import sum_of, without_present
from headrace.engine.relocation_wire import Adopt, RelocationNews
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, TrainingEvent
from headrace.engine.watch_wire import StepReport
from headrace.engine.wire import (
    AdapterAnswer,
    AdapterCall,
    AdapterList,
    AdapterUse,
    Gauges,
    Instance,
    Ready,
    Refused,
    StepOutputs,
    Submit,
)
from headrace.errors import HeadraceError
from headrace.instances.balancing import Balancing
from headrace.instances.draining import Draining
from headrace.instances.handoff import Handoff
from headrace.instances.known_prefixes import KnownPrefixes
from headrace.instances.member import Member
from headrace.instances.options import GroupOptions
from headrace.instances.owners import Owned
from headrace.instances.relocation import Relocation
from headrace.instances.resizing import Resizing
from headrace.instances.shared_adapters import SharedAdapters
from headrace.instances.shared_training import SharedTraining
from headrace.instances.slots import Slot, Slots, SlotState
from headrace.placement.dispatch import Newcomer, choose_instance
from headrace.placement.roles import Role, check_roles, for_prompts
from headrace.scheduling.settings import SchedulingSettings

__all__ = ["GroupOptions", "InstanceGroup", "InstanceStatus"]

logger = logging.getLogger("headrace.instances.group")

MOST_DEATHS = 3
"""Engines that may end under one request before it is given up, so that none can end all of them for ever."""
_DEATHS = "the engines that ran this request ended one after the other"


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One instance as operators see it. ``pid`` is 0 without a process."""

    number: int
    state: SlotState
    pid: int
    threads: int
    crashes: int
    requests: int
    role: Role
    gauges: Gauges


class InstanceGroup(EngineClient):
    """Instances behind the interface of one engine. Not thread-safe: use it from its event loop only.

    Each request has one owner record (:class:`Owned`); outputs of anybody else are dropped and counted in ``strays``. When an
    engine ends or hangs, its requests go on elsewhere behind what their streams got, with the same bits.
    """

    def __init__(
        self,
        options: GroupOptions,
        on_death: Callable[[HeadraceError], None] | None = None,
        client: type[EngineClient] = EngineClient,
    ) -> None:
        super().__init__(on_death)
        self.options = options
        self.slots = Slots(options, client.command, self)
        self.relocation = Relocation(self, ask_first=options.ask_first)
        self._adapters = SharedAdapters(lambda: [member for member in self.slots.living if member.informed])
        self.strays = 0
        self.replays = 0
        self._owners: dict[int, Owned] = {}
        self._homeless: deque[Owned] = deque()
        self._prefixes = KnownPrefixes(16)
        self.handoff = Handoff(check_roles(options.each), self.slots, self.relocation, self._owners)
        self.balancing = Balancing(options, self.slots, self.relocation, self._owners, self.handoff)
        self.training = SharedTraining(options, self.slots, self._tell_training, self.register_adapter)
        self.draining = Draining(options, self.slots, self.relocation, self._owners, self.handoff, self.training)
        self.resizing = Resizing(options, self.slots, self.draining, self._settle_homeless)
        self._past = Gauges()
        self._past_refusals: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    # Life.

    async def launch(
        self, settings: EngineSettings, scheduling: SchedulingSettings | None = None, instance: Instance | None = None
    ) -> None:
        """Start all processes. Raises ``engine_dead``."""
        if self._started is not None or instance is not None:
            raise RuntimeError("a group starts once, and is no instance of another one")
        self._started = asyncio.get_running_loop().create_future()
        await self.slots.launch(settings, scheduling or SchedulingSettings())

    async def started(self) -> Ready:
        """Wait until every instance has loaded. Raises what the first that can't raises, ``model_file`` when they differ."""
        if self._ready is None:
            ready = await self.slots.started()
            self._prefixes = KnownPrefixes(ready.page_tokens)
            self._ready = ready
            self._tasks = [asyncio.create_task(self.balancing.watch())]
            if self.options.round_seconds > 0:
                self._tasks.append(asyncio.create_task(self.balancing.rounds()))
            if self.options.scaling is not None:
                self._tasks.append(asyncio.create_task(self.resizing.looks()))
        return self._ready

    async def drain(self, timeout: float | None = None) -> bool:
        """Let what runs finish, then end all instances; True when that was in time."""
        self._leaving = True
        until = None if timeout is None else time.monotonic() + timeout
        while self._streams and self._dead is None and (until is None or time.monotonic() < until):
            await asyncio.sleep(0.01)
        left = None if until is None else max(0.0, until - time.monotonic())
        there = [slot.member for slot in self.slots.all if slot.state != "gone" and slot.member.dead is None]
        ended = await asyncio.gather(*(member.drain(left) for member in there))
        self._close()
        await self.slots.closed()
        return all(ended)

    async def stop(self) -> int | None:
        """End all instances now. Open streams raise ``engine_dead``."""
        self._leaving = True
        self._close()  # first, so that none starts again meanwhile
        codes = await asyncio.gather(*(slot.member.stop() for slot in self.slots.all))
        await self.slots.closed()
        self._end(HeadraceError("engine_dead", "the engines have been stopped"))
        return next((code for code in codes if code), 0 if codes else None)

    def _close(self) -> None:
        self.handoff.close()
        self.draining.close()
        self.training.close()
        for task in self._tasks:
            task.cancel()
        self.slots.close()

    # Requests.

    @property
    def gauges(self) -> Gauges:
        """Sums over all instances, of those that ended too."""
        return sum_of([self._past, *(slot.member.gauges for slot in self.slots.all)])

    def statuses(self) -> list[InstanceStatus]:
        """Every instance, in order."""
        holders = Counter(id(owned.holder) for owned in self._owners.values())
        return [
            InstanceStatus(
                slot.number, slot.state, slot.member.pid or 0 if slot.member.dead is None else 0, slot.part.threads,
                slot.crashes, holders[id(slot.member)], self.handoff.roles[slot.number], slot.member.gauges,
            )
            for slot in self.slots.all
        ]  # fmt: skip

    def refusals(self) -> dict[tuple[str, str], int]:
        """Connections that were turned away, by (``join`` or ``pages``, reason)."""
        pages = sum((Counter(slot.member.page_refusals) for slot in self.slots.all), self._past_refusals.copy())
        joins = self.slots.hall.refusals.counts if self.slots.hall is not None else {}
        return {("join", reason): count for reason, count in joins.items()} | {
            ("pages", reason): count for reason, count in pages.items()
        }

    def submit(self, request: Submit) -> RequestStream:
        """Send a request to the instance that suits it best. As :meth:`EngineClient.submit`."""
        self._check_serving()
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id} is in use")
        stream = RequestStream(self, request.request_id, 1 if request.embed else request.params.n)
        owned = Owned(request)
        self._streams[request.request_id] = stream
        self._owners[request.request_id] = owned
        try:
            self._place(owned)
        except HeadraceError:
            self._forget(request.request_id)
            raise
        return stream

    def owned(self, request_id: int) -> Owned | None:
        """The record of a request that has not ended."""
        return self._owners.get(request_id)

    def _send_cancel(self, request_id: int, choice: int | None) -> None:
        owned = self._owners.get(request_id)
        if owned is None:
            return
        if choice is not None:
            owned.closed.add(choice)
        if owned.holder is not None:
            owned.holder.cancel_request(request_id, choice)
        else:
            owned.unsent.append(choice)

    def _forget(self, request_id: int) -> None:
        super()._forget(request_id)
        self._owners.pop(request_id, None)

    def _place(self, owned: Owned) -> None:
        """Send a request to an instance, or keep it until there is one."""
        candidates = {
            slot.number: slot for slot in self.slots.serving
            if self.translated(owned.submit, slot.member) is not None
        }  # fmt: skip
        if not candidates:
            owned.give(None)
            self._homeless.append(owned)
            return
        submit = owned.submit
        root = (submit.tenant, tuple((use.generation, use.scale) for use in submit.adapters))
        pages = -(-(owned.length + 1) // (self._ready.page_tokens if self._ready is not None else 16))
        newcomer = Newcomer(pages, self._prefixes.find(root, submit.prompt), self._at_home(submit), submit.priority > 0)
        loads = {number: candidates[number].member.load() for number in for_prompts(candidates, self.handoff.roles)}
        number = choose_instance(loads, newcomer, self.options.dispatch)
        member = candidates[next(iter(loads)) if number is None else number].member
        translated = self.translated(submit, member)
        assert translated is not None, "candidates have its adapters"
        fresh = owned.epoch == 0 and not owned.closed
        message = translated if fresh else Adopt(0, msgspec.structs.replace(owned.state(), submit=translated))
        self._prefixes.note(root, submit.prompt, member.number)
        member.used.update(use.generation for use in submit.adapters)
        owned.give(member)
        member.give(message, pages)

    def _at_home(self, submit: Submit) -> frozenset[int]:
        """Instances that have run requests with the same adapters."""
        wanted = {use.generation for use in submit.adapters}
        return frozenset(slot.number for slot in self.slots.serving if wanted and wanted <= slot.member.used)

    def translated(self, submit: Submit, member: Member) -> Submit | None:
        """The request with this engine's generations of its adapters; ``None``: it lacks one."""
        if not submit.adapters:
            return submit
        known = member.generations
        if any(use.generation not in known for use in submit.adapters):
            return None
        uses = [AdapterUse(known[use.generation], use.scale) for use in submit.adapters]
        return msgspec.structs.replace(submit, adapters=uses)

    def has_place(self, owned: Owned, member: Member) -> None:
        """A request has come to rest with this engine: cancels that had no address are sent now."""
        request_id = owned.submit.request_id
        if request_id not in self._owners:
            member.cancel_request(request_id, None)
            return
        owned.give(member)
        unsent, owned.unsent = owned.unsent, []
        for choice in unsent:
            member.cancel_request(request_id, choice)

    def replay(self, owned: Owned) -> None:
        """Nobody has the request any more: go on behind what its stream got."""
        request_id = owned.submit.request_id
        stream = self._streams.get(request_id)
        if stream is None or request_id not in self._owners:
            return
        owned.unsent = []
        if owned.deaths >= MOST_DEATHS:
            stream._fail(HeadraceError("engine_dead", _DEATHS))
            return
        self.replays += 1
        self._place(owned)

    # What members say.

    def outputs(self, member: Member, message: StepOutputs) -> None:
        """Pass outputs on to the streams of requests that this engine has."""
        for output in message.outputs:
            owned = self._owners.get(output.request_id)
            if owned is None:
                continue
            if owned.holder is not member:
                self.strays += 1
                logger.error("instance %d sent outputs of request %d, which it does not have", member.number, output.request_id)
                continue
            owned.note(output)
            self._streams[output.request_id]._push(output)
            self.handoff.token(owned, member)

    def refused(self, member: Member, message: Refused) -> None:
        """An engine can't run a request."""
        owned, stream = self._owners.get(message.request_id), self._streams.get(message.request_id)
        if owned is not None and stream is not None and owned.holder is member:
            stream._fail(HeadraceError(message.code, message.message, param=message.param))

    def news(self, member: Member, message: RelocationNews) -> None:
        """A request comes or goes."""
        self.relocation.hear(member, message)

    def takes(self, member: Member, role: Role) -> None:
        """A worker of another machine has its role with it."""
        self.handoff.takes(member.number, role)

    def lost(self, member: Member) -> None:
        """A process has ended: its requests go on elsewhere, and it starts again."""
        slot = self.slots[member.number]
        if self._leaving or slot.member is not member or self._ready is None:
            return
        self._past = sum_of([self._past, without_present(member.gauges)])
        self._past_refusals.update(member.page_refusals)
        member.page_refusals = {}
        member._gauges = Gauges()
        self._prefixes.forget(member.number)
        orphans = [owned for owned in self._owners.values() if owned.holder is member]
        emptied = slot.state in ("leaving", "drained")
        slot.state = "gone"
        self.relocation.member_lost(member)
        if not emptied:
            logger.warning("instance %d has ended; %d requests go on elsewhere", member.number, len(orphans))
            self.slots.start_again(slot, self._settle_homeless)
        self.training.lost(member)
        for owned in orphans:
            owned.deaths += 1
            owned.give(None)
            self.replay(owned)

    async def prepare(self, member: Member) -> None:
        """An instance that starts again learns the adapters that there are."""
        await self._adapters.bring(member)

    def watch(self, seconds: float) -> None:
        """Ask all instances for reports of their steps."""
        for member in self.slots.living:
            member.watch(seconds)

    def take_reports(self) -> list[StepReport]:
        """What came since the last call, instance by instance."""
        return [report for slot in self.slots.all for report in slot.member.take_reports()]

    def start_training(self, start: StartTraining) -> None:
        """Start a job in one of the instances; what it publishes reaches all of them. As :meth:`EngineClient.start_training`."""
        self._check_serving()
        self.training.start(start)

    def stop_training(self, job: str, how: Literal["pause", "cancel"]) -> None:
        """As :meth:`EngineClient.stop_training`."""
        self._check_serving()
        self.training.stop(job, how)

    def trained(self, member: Member, message: TrainingEvent) -> None:
        """Something has become of a job."""
        self.training.heard(member, message)

    def _tell_training(self, event: TrainingEvent) -> None:
        if self.on_training is not None:
            self.on_training(event)

    async def _call(self, call: AdapterCall) -> AdapterAnswer | AdapterList:
        self._check_serving()
        return await self._adapters.call(call)

    def undrain(self, number: int) -> None:
        """Let an instance that was drained take requests again, or start it again. Raises ``invalid_value``."""
        self.draining.undrain(number, self._settle_homeless)

    def _settle_homeless(self, slot: Slot) -> None:
        homeless, self._homeless = self._homeless, deque()
        for owned in homeless:
            if owned.submit.request_id in self._owners:
                self._place(owned)
        self.training.settle()

    def _end(self, error: HeadraceError) -> None:
        if self._dead is None:
            self._dead = error
        for stream in list(self._streams.values()):
            stream._fail(error)
