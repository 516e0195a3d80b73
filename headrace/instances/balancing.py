"""Who exchanges requests with whom, who is emptied, who hangs: what a group does beside passing tokens on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from headrace.instances.handoff import Handoff
from headrace.instances.member import Member
from headrace.instances.options import GroupOptions
from headrace.instances.owners import Owned
from headrace.instances.relocation import Relocation
from headrace.instances.slots import Slots
from headrace.placement.dispatch import Newcomer, choose_instance
from headrace.placement.pairing import Pairing
from headrace.placement.roles import Role, for_tokens

logger = logging.getLogger("headrace.instances.balancing")


class Balancing:
    """Moves between the instances of one group, by its policies or because somebody asks."""

    def __init__(
        self, options: GroupOptions, slots: Slots, relocation: Relocation, owners: Mapping[int, Owned], handoff: Handoff
    ) -> None:
        self._options = options
        self._slots = slots
        self._relocation = relocation
        self._owners = owners
        self._handoff = handoff
        roles: tuple[Role, ...] = ("all", "prefill", "decode")
        self._pairings = {role: Pairing(options.pairing) for role in roles}  # instances exchange requests with their like

    async def empty(self, number: int, patience: float = 60.0) -> bool:
        """Empty an instance by moving its requests to others, then end it; True when it ended in time (seconds)."""
        slot = self._slots[number]
        slot.state, slot.member.leaving = "leaving", True
        until = time.monotonic() + patience
        while time.monotonic() < until:
            mine = [request_id for request_id, owned in self._owners.items() if owned.holder is slot.member]
            if not mine and not self._relocation.busy(slot.member):
                return await slot.member.drain(max(0.0, until - time.monotonic()))
            moves = [self._move_away(slot.member, request_id) for request_id in mine[:2]]
            problems = await asyncio.gather(*(move for move in moves if move is not None))
            if not problems or any(problems):
                await asyncio.sleep(0.02)
        return False

    def _move_away(self, source: Member, request_id: int) -> asyncio.Future[str | None] | None:
        serving = for_tokens([slot.number for slot in self._slots.serving], self._handoff.roles)
        loads = {number: self._slots[number].member.load() for number in serving}
        number = choose_instance(loads, Newcomer(0), self._options.dispatch)
        if number is None:
            return None
        target = loads[number]
        return self._relocation.begin(source, self._slots[number].member, target.pages - target.held, request_id)

    async def move(self, request_id: int, number: int) -> str | None:
        """Move a running request to an instance; ``None`` when it runs there, else why not."""
        owned, target = self._owners.get(request_id), self._slots[number].member
        if owned is None or owned.holder is None or owned.holder is target or self._slots[number].state != "serving":
            return "it has ended, is being moved, or is there"
        load = target.load()
        return await self._relocation.begin(owned.holder, target, load.pages - load.held, request_id)

    async def rounds(self) -> None:
        """Let full instances give requests to free ones, for ever."""
        while True:
            await asyncio.sleep(self._options.round_seconds)
            serving = {slot.number: slot for slot in self._slots.serving}
            if len(serving) < 2:
                continue
            loads = {number: slot.member.load() for number, slot in serving.items()}
            roles = self._handoff.roles
            for pair in [
                pair for role, pairing in self._pairings.items()
                for pair in pairing.round({number: load for number, load in loads.items() if roles[number] == role})
            ]:  # fmt: skip
                source, target = serving[pair.source].member, serving[pair.target].member
                if not (self._relocation.busy(source) or self._relocation.busy(target)):
                    self._relocation.begin(source, target, pair.room)

    async def watch(self) -> None:
        """End engines that hang, for ever."""
        while True:
            await asyncio.sleep(self._options.ping_seconds)
            for member in self._slots.living:
                if member.silent_for() > self._options.hang_seconds:
                    logger.error("instance %d has said nothing for %.0f s and is ended", member.number, member.silent_for())
                    member.kill()
                else:
                    member.ping()
