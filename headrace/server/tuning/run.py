"""One job at an engine: from the start message to its last word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from headrace.engine.client import EngineClient
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.errors import ERROR_TABLE, HeadraceError

Event = TrainingProgress | TrainingCheckpoint | TrainingEnded
_LOOK_SECONDS = 1.0


class Listeners:
    """Hands the events of engines to whoever runs the job that they are about."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[Event]] = {}

    @contextmanager
    def hearing(self, engine: EngineClient, job: str) -> Iterator[asyncio.Queue[Event]]:
        """The events of one job while the block runs."""
        engine.on_training = self._heard
        queue = self._queues[job] = asyncio.Queue()
        try:
            yield queue
        finally:
            del self._queues[job]

    def _heard(self, event: Event) -> None:
        queue = self._queues.get(event.job)
        if queue is not None:
            queue.put_nowait(event)


async def train(engine: EngineClient, start: StartTraining, listeners: Listeners) -> AsyncGenerator[Event, None]:
    """Run a job; its events, of which the last is TrainingEnded. Raises ``engine_dead`` when the engine ends under it."""
    with listeners.hearing(engine, start.job) as queue:
        engine.start_training(start)
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    event = await queue.get()
            except TimeoutError:
                if engine.dead is not None or engine.ready is None:
                    raise engine.dead or HeadraceError("engine_dead", ERROR_TABLE["engine_dead"].meaning) from None
                continue
            yield event
            if isinstance(event, TrainingEnded):
                return
