"""Fine-tuning jobs of a group: each lives in one instance, and goes on in another one from its last checkpoint when that ends."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingEvent
from headrace.errors import HeadraceError
from headrace.instances.member import Member
from headrace.instances.options import GroupOptions
from headrace.instances.slots import Slots
from headrace.placement.dispatch import Newcomer, choose_instance

logger = logging.getLogger("headrace.instances.training")

MOST_DEATHS = 3
"""Instances that may end under one job between two checkpoints before it fails, so that none can end all of them for ever."""
Publish = Callable[[str, str], Awaitable[object]]
"""Give an adapter's folder (second) a name (first) in all instances. Raises HeadraceError."""


@dataclass(slots=True, eq=False)
class _Placed:
    """A job. ``home``: the instance that runs it, ``None`` while none can. ``stop``: what its owner has asked for.

    ``step``, ``folder``: of its last checkpoint. ``publishing``: versions on their way to all instances.
    """

    start: StartTraining
    home: Member | None = None
    stop: Literal["pause", "cancel"] | None = None
    leaving: bool = False
    deaths: int = 0
    step: int = 0
    folder: str | None = None
    publishing: asyncio.Task[None] | None = None


class SharedTraining:
    """Where jobs run. ``tell`` hears their events as if there were one engine; ``publish`` reaches all instances."""

    def __init__(self, options: GroupOptions, slots: Slots, tell: Callable[[TrainingEvent], object], publish: Publish) -> None:
        self._options = options
        self._slots = slots
        self._tell = tell
        self._publish = publish
        self._jobs: dict[str, _Placed] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def homes(self) -> dict[str, int | None]:
        """The number of each job's instance; ``None`` for one that waits until there is one."""
        return {name: placed.home.number if placed.home is not None else None for name, placed in self._jobs.items()}

    def start(self, start: StartTraining) -> None:
        """Take a job. What is wrong with it is told by its TrainingEnded."""
        if start.job in self._jobs:
            self._tell(TrainingEnded(start.job, "failed", 0, None, "invalid_value", "a job of this name runs already"))
            return
        placed = self._jobs[start.job] = _Placed(start)
        self._place(placed)

    def stop(self, job: str, how: Literal["pause", "cancel"]) -> None:
        """End a job; unknown ones are ignored."""
        placed = self._jobs.get(job)
        if placed is None or placed.stop == "cancel":
            return
        placed.stop = how
        if placed.home is not None:
            placed.home.stop_training(job, how)
        else:
            self._stopped(placed)

    def heard(self, member: Member, event: TrainingEvent) -> None:
        """A member says something of a job; what is said of jobs that it no longer has is dropped."""
        placed = self._jobs.get(event.job)
        if placed is None or placed.home is not member:
            return
        if isinstance(event, TrainingCheckpoint):
            placed.step, placed.folder, placed.deaths = event.step, event.folder, 0
            if placed.start.publish is not None:
                self._serve_version(placed, placed.start.publish, event.folder)
        if not isinstance(event, TrainingEnded):
            self._tell(event)
        elif event.status == "paused" and placed.stop != "pause":
            placed.home, placed.leaving = None, False
            if placed.stop == "cancel":
                self._stopped(placed)
            else:
                self._place(placed)
        else:
            self._ended(placed, event)

    def lost(self, member: Member) -> None:
        """An instance has ended: its jobs go on elsewhere."""
        for placed in [one for one in self._jobs.values() if one.home is member]:
            placed.home, placed.leaving = None, False
            placed.deaths += 1
            if placed.stop is not None:
                self._stopped(placed)
            elif placed.deaths >= MOST_DEATHS:
                message = f"{MOST_DEATHS} instances ended under the job, one after the other"
                self._ended(placed, TrainingEnded(placed.start.job, "failed", placed.step, placed.folder, "engine_dead", message))
            else:
                logger.warning("job %s goes on from its last checkpoint: its instance has ended", placed.start.job[:64])
                self._place(placed)

    def settle(self) -> None:
        """An instance has begun to serve: jobs that waited for one begin."""
        for placed in [one for one in self._jobs.values() if one.home is None]:
            self._place(placed)

    def leave(self, member: Member) -> bool:
        """Have a member's jobs make a checkpoint and go elsewhere; True when it has none."""
        own = [placed for placed in self._jobs.values() if placed.home is member]
        for placed in own:
            if not placed.leaving and placed.stop is None:
                placed.leaving = True
                member.stop_training(placed.start.job, "pause")
        return not own

    def close(self) -> None:
        """Publish nothing any more."""
        for task in self._tasks:
            task.cancel()

    def _place(self, placed: _Placed) -> None:
        """Begin a job, or go on with it, in the freest of the instances with fewest jobs."""
        jobs = Counter(other.home.number for other in self._jobs.values() if other.home is not None)
        serving = {slot.number: slot.member for slot in self._slots.serving}
        fewest = min((jobs[number] for number in serving), default=0)
        loads = {number: member.load() for number, member in serving.items() if jobs[number] == fewest}
        number = choose_instance(loads, Newcomer(0), self._options.dispatch)
        if number is None:
            return
        placed.home = serving[number]
        try:
            placed.home.start_training(msgspec.structs.replace(placed.start, publish=None))
        except HeadraceError:  # it is going: the job waits for the next one
            placed.home = None

    def _stopped(self, placed: _Placed) -> None:
        """A job that no instance runs ends as its owner has asked."""
        status: Literal["paused", "cancelled"] = "paused" if placed.stop == "pause" else "cancelled"
        self._ended(placed, TrainingEnded(placed.start.job, status, placed.step, placed.folder))

    def _ended(self, placed: _Placed, event: TrainingEnded) -> None:
        """The last word, after the last version has come to all instances."""
        placed.home = None
        del self._jobs[placed.start.job]
        if placed.publishing is None or placed.publishing.done():
            self._tell(event)
        else:
            placed.publishing.add_done_callback(lambda _: self._tell(event))

    def _serve_version(self, placed: _Placed, name: str, folder: str) -> None:
        before = placed.publishing

        async def work() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await self._publish(name, folder)
            except HeadraceError as error:
                logger.warning("job %s: its adapter can't be served: %s", placed.start.job[:64], error.message)

        task = placed.publishing = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
