"""The runs behind the experiment on moves between engines."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType

from headrace.engine.request_stream import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.evaluation.engine_requests import collect, mixed_params, prompt_of, share_alike
from headrace.evaluation.experiment import Conditions
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.owners import Owned
from headrace.scheduling.settings import SchedulingSettings

_PAUSE = 0.03  # seconds between two moves of one request
_MOVES_EACH = 16  # of one length, each time that it has its turn


class Fleet:
    """Two instances of one thread each, which exchange nothing by themselves unless ``rounds`` are asked for."""

    def __init__(self, conditions: Conditions, pool_mib: int = 512, rounds: float = 0.0) -> None:
        self._settings = EngineSettings(model=conditions.model, threads=2, pool_mib=pool_mib, preempt="recompute")
        self.group = InstanceGroup(GroupOptions(2, round_seconds=rounds, restart_seconds=0.05))

    async def __aenter__(self) -> Fleet:
        await self.group.start(self._settings, SchedulingSettings(prefix_reuse="off"))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.group.stop()

    def submit(self, prompt: list[int], params: SamplingParams) -> RequestStream:
        """Start a request."""
        return self.group.submit(Submit(self.group.new_request_id(), prompt, params, speculation=0))

    def holder(self, stream: RequestStream) -> int | None:
        """Which instance has the request; ``None`` while it changes hands or has ended."""
        owned: Owned | None = self.group.owned(stream.request_id)
        return owned.holder.number if owned is not None and owned.holder is not None and not owned.move else None

    async def move(self, stream: RequestStream) -> bool:
        """Move a request to the other instance."""
        holder = self.holder(stream)
        return holder is not None and await self.group.balancing.move(stream.request_id, 1 - holder) is None


@dataclass(frozen=True, slots=True)
class Exact:
    """``same``: per cent of the requests. ``recomputed``: tokens beyond those of the prompts."""

    same: float
    moves: int
    recomputed: int


async def exact_moves(fleet: Fleet, count: int, output: int, seed: int) -> Exact:
    """Each request alone, and then all together and moved all the time."""
    asked = [(prompt_of(40 + 37 * i, seed + i), mixed_params(i, output)) for i in range(count)]
    alone = [await collect(fleet.submit(*one)) for one in asked]
    before = fleet.group.gauges.prompt_tokens
    streams = [fleet.submit(*one) for one in asked]
    wanderers = [asyncio.create_task(_wander(fleet, stream)) for stream in streams]
    together = await asyncio.gather(*(collect(stream) for stream in streams))
    moves = sum(await asyncio.gather(*wanderers))
    recomputed = fleet.group.gauges.prompt_tokens - before - sum(len(prompt) for prompt, _ in asked)
    return Exact(share_alike(alone, together), moves, recomputed)


async def _wander(fleet: Fleet, stream: RequestStream) -> int:
    moved = 0
    while not stream.finished:
        moved += await fleet.move(stream)
        await asyncio.sleep(_PAUSE)
    return moved


@dataclass(frozen=True, slots=True)
class Still:
    """Seconds by length: out of the batch (medians); one step of the longest; and computing the longest again."""

    seconds: list[float]
    step: float
    recompute: float


async def still_times(fleet: Fleet, lengths: tuple[int, ...]) -> Still:
    """The time for which a request of each length is in nobody's batch; lengths have their turn up and down again.

    Medians of many, since one is a millisecond, in which a machine may do something else.
    """
    found: dict[int, list[float]] = {length: [] for length in lengths}
    step = recompute = 0.0
    for length in (*lengths, *reversed(lengths)):
        began = time.perf_counter()
        stream = fleet.submit(prompt_of(length, length), SamplingParams(max_tokens=1000, ignore_eos=True))
        await anext(stream)
        if length == max(lengths):
            recompute = time.perf_counter() - began
        for _ in range(_MOVES_EACH):
            if await fleet.move(stream):
                found[length].append(fleet.group.relocation.counts.last_still[-1])
        if length == max(lengths):
            step = await _step_of(stream)
        stream.cancel()
    return Still([statistics.median(found[length] or [float("nan")]) for length in lengths], step, recompute)


async def _step_of(stream: RequestStream) -> float:
    gaps = []
    for _ in range(8):
        began = time.perf_counter()
        await anext(stream)
        gaps.append(time.perf_counter() - began)
    return statistics.median(gaps)


async def times_to_empty(fleet: Fleet, output: int) -> float:
    """How much sooner an instance has no request when they move away than when they end."""
    began = time.perf_counter()
    streams = [fleet.submit(prompt_of(100, i), SamplingParams(max_tokens=4 * output, seed=i, ignore_eos=True)) for i in range(4)]
    readers = [asyncio.create_task(collect(stream)) for stream in streams]
    await asyncio.sleep(0.3)
    started = time.perf_counter()
    moving = [stream for stream in streams if fleet.holder(stream) == 1]
    while any(fleet.holder(stream) != 0 and not stream.finished for stream in moving):
        for stream in moving:
            if fleet.holder(stream) == 1:
                await fleet.move(stream)
    emptied = time.perf_counter() - started
    await asyncio.gather(*readers)
    return (time.perf_counter() - began - 0.3) / max(emptied, 1e-9)


async def lost_engines(fleet: Fleet, count: int, output: int, seed: int) -> float:
    """Per cent of the requests that gave the same although their engine was killed after some tokens."""
    same = 0
    for i in range(count):
        prompt, params = prompt_of(60, seed + i), SamplingParams(max_tokens=output, temperature=0.9, seed=i, ignore_eos=True)
        alone = await collect(fleet.submit(prompt, params))
        stream = fleet.submit(prompt, params)
        first = await anext(stream)
        owned = fleet.group.owned(stream.request_id)
        if owned is not None and owned.holder is not None:
            owned.holder.kill()
        rest = await collect(stream)
        tokens = [token for one in first for token in one.tokens] + [token for _, own, _ in rest for token in own]
        same += tokens == alone[0][1]
        while len(fleet.group.slots.serving) < 2:
            await asyncio.sleep(0.05)
    return 100.0 * same / count


async def making_room(conditions: Conditions, trials: int) -> tuple[float, float]:
    """Seconds until the first token of a prompt that fits nowhere until short requests have moved: (with moves, without).

    Medians of so many trials in turns.
    """
    found: dict[float, list[float]] = {0.05: [], 0.0: []}
    async with AsyncExitStack() as stack:
        fleets = {rounds: await stack.enter_async_context(Fleet(conditions, 64, rounds)) for rounds in found}
        for trial in range(trials):
            for rounds, fleet in fleets.items() if trial % 2 else reversed(fleets.items()):
                found[rounds].append(await _wait_for_room(fleet))
    return statistics.median(found[0.05]), statistics.median(found[0.0])


async def _wait_for_room(fleet: Fleet) -> float:
    """Each of two instances has two requests that leave too little room for a third, until one has moved or ended."""
    ready = fleet.group.ready
    tokens = ready.pages_total * ready.page_tokens // 2 if ready is not None else 0  # of one instance
    params = SamplingParams(max_tokens=tokens * 11 // 100, ignore_eos=True)
    short = [fleet.submit(prompt_of(tokens * 21 // 100, i), params) for i in range(4)]
    for stream in short:
        await anext(stream)
    readers = [asyncio.create_task(collect(stream)) for stream in short]
    began = time.perf_counter()
    large = fleet.submit(prompt_of(tokens * 61 // 100, 9), SamplingParams(max_tokens=2, ignore_eos=True))
    await anext(large)
    seconds = time.perf_counter() - began
    large.cancel()
    for stream in short:
        stream.cancel()
    await asyncio.gather(*readers)
    while any(status.gauges.running or status.gauges.waiting for status in fleet.group.statuses()):
        await asyncio.sleep(0.01)
    return seconds
