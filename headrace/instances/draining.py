"""Instances that are emptied while they run: their requests go on elsewhere, and then the process may end and start again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from headrace.errors import HeadraceError
from headrace.instances.handoff import Handoff
from headrace.instances.options import GroupOptions
from headrace.instances.owners import Owned
from headrace.instances.relocation import Relocation
from headrace.instances.shared_training import SharedTraining
from headrace.instances.slots import Slot, Slots
from headrace.placement.dispatch import Newcomer, choose_instance
from headrace.placement.roles import for_prompts, for_tokens

_PAUSE = 0.02
"""Seconds until it is tried again to move requests that could not go."""
_END_SECONDS = 10.0
"""How long an empty process may take to end before it is killed."""
AT_ONCE = 2
"""Requests that leave an instance at the same time."""


class Draining:
    """Takes instances of one group out of use and back into it, because somebody asks."""

    def __init__(
        self, options: GroupOptions, slots: Slots, relocation: Relocation, owners: Mapping[int, Owned], handoff: Handoff,
        training: SharedTraining,
    ) -> None:  # fmt: skip
        self._options = options
        self._slots = slots
        self._relocation = relocation
        self._owners = owners
        self._handoff = handoff
        self._training = training
        self._tasks: dict[int, asyncio.Task[bool]] = {}

    def slot(self, number: int) -> Slot:
        """The place of that number. Raises ``invalid_value``."""
        if not 0 <= number < len(self._slots.all):
            raise HeadraceError("invalid_value", f"there is no instance {number}; {self._slots.names()}", param="instance")
        return self._slots[number]

    def drain(self, number: int, *, stop: bool = False) -> asyncio.Task[bool]:
        """Give an instance's requests to others and nothing new to it; with ``stop`` its process ends then.

        The task is done when that is so, False when the instance was taken back or lost meanwhile. Raises ``state_conflict``
        for the last one that serves, and for one that is starting.
        """
        slot = self.slot(number)
        if slot.state in ("loading", "waiting"):
            raise HeadraceError("state_conflict", f"instance {number} is {slot.state}; drain it when it serves", param="instance")
        if slot.state == "serving" and len(self._slots.serving) < 2:
            message = f"instance {number} is the only one that serves; its requests could go nowhere"
            raise HeadraceError("state_conflict", message, param="instance")
        if slot.state == "serving":
            slot.state = "leaving"
        slot.member.leaving = True
        before = self._tasks.get(number)
        task = self._tasks[number] = asyncio.create_task(self._empty(slot, before, stop=stop))
        return task

    def undrain(self, number: int, then: Callable[[Slot], object]) -> None:
        """Let an instance take requests again; one whose process has ended starts. Nothing to do for others.

        ``then`` is called when it serves.
        """
        slot = self.slot(number)
        if slot.state == "gone":
            self._slots.start(slot, then)
        elif slot.state in ("leaving", "drained"):
            slot.member.leaving = False
            slot.state = "serving"
            then(slot)

    def close(self) -> None:
        """Empty nobody any more."""
        for task in self._tasks.values():
            task.cancel()

    async def _empty(self, slot: Slot, before: asyncio.Task[bool] | None, *, stop: bool) -> bool:
        if before is not None and not before.done():
            await asyncio.wait([before])
        member = slot.member
        while slot.state == "leaving" and slot.member is member:
            mine = [request_id for request_id, owned in self._owners.items() if owned.holder is member]
            jobs_left = not self._training.leave(member)
            if not mine and not jobs_left and not self._relocation.busy(member):
                slot.state = "drained"
                break
            moves = [self._move_away(slot, request_id) for request_id in mine[:AT_ONCE]]
            problems = await asyncio.gather(*(move for move in moves if move is not None))
            if not problems or any(problems):
                await asyncio.sleep(_PAUSE)
        if slot.state == "drained" and slot.member is member and stop:
            if not await member.drain(_END_SECONDS):
                await member.stop()
            while member.dead is None:
                await asyncio.sleep(0.001)  # the group hears that it is lost, and leaves it so
        return slot.state in ("drained", "gone") and slot.member is member

    def _move_away(self, slot: Slot, request_id: int) -> asyncio.Future[str | None] | None:
        roles, serving = self._handoff.roles, [other.number for other in self._slots.serving]
        owned = self._owners[request_id]
        places = for_tokens(serving, roles) if owned.tokens else for_prompts(serving, roles)
        loads = {number: self._slots[number].member.load() for number in places}
        number = choose_instance(loads, Newcomer(0), self._options.dispatch)
        if number is None:
            return None
        target = loads[number]
        return self._relocation.begin(slot.member, self._slots[number].member, target.pages - target.held, request_id)
