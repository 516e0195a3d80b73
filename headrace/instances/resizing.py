"""As many instances as the load wants: processes that start, and others that are emptied by moves and end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from headrace.errors import HeadraceError
from headrace.instances.draining import Draining
from headrace.instances.options import GroupOptions
from headrace.instances.slots import Slot, Slots
from headrace.placement.scaling import Scaling

logger = logging.getLogger("headrace.instances.resizing")


class Resizing:
    """Starts and ends instances of one group between the least and the most; those that somebody drained are left alone."""

    def __init__(self, options: GroupOptions, slots: Slots, draining: Draining, serves: Callable[[Slot], object]) -> None:
        self.started = 0
        self.ended = 0
        self._options = options
        self._slots = slots
        self._draining = draining
        self._serves = serves
        self._idle = set(range(options.scaling.least, options.instances)) if options.scaling is not None else set()
        self._scaling = Scaling(options.scaling)

    async def looks(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(self._options.look_seconds)
            try:
                self.look()
            except HeadraceError as error:  # somebody drains or ends the same one: the next look sees what came of it
                logger.warning("the number of instances stays as it is for now: %s", error.message)

    def look(self) -> None:
        """One look: at most one instance more or fewer. None while one starts, which changes the load soon."""
        slots = self._slots
        self._idle -= {slot.number for slot in slots.serving}
        if any(slot.state in ("loading", "waiting") for slot in slots.all):
            return
        loads = {slot.number: slot.member.load() for slot in slots.serving}
        direction = self._scaling.look(loads)
        if direction > 0:
            self._grow()
        elif direction < 0:
            self._shrink(self._scaling.victim(loads))

    def _grow(self) -> None:
        """Who is still being emptied stays; else another process starts."""
        order = {"leaving": 0, "gone": 1}
        able = [self._slots[number] for number in self._idle if self._slots[number].state in order]
        if able:
            slot = min(able, key=lambda slot: (order[slot.state], slot.number))
            self.started += slot.state == "gone"
            logger.info("instance %d is wanted", slot.number)
            self._draining.undrain(slot.number, self._serves)

    def _shrink(self, victim: int | None) -> None:
        if victim is not None:
            logger.info("instance %d is not needed now", victim)
            self._draining.drain(victim, stop=True)
            self._idle.add(victim)
            self.ended += 1
