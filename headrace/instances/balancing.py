"""Who exchanges requests with whom, and who hangs: what a group does beside passing tokens on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from headrace.instances.handoff import Handoff
from headrace.instances.options import GroupOptions
from headrace.instances.owners import Owned
from headrace.instances.relocation import Relocation
from headrace.instances.slots import Slots
from headrace.placement.pairing import Pairing
from headrace.placement.roles import Role

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
