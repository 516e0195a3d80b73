"""The runs behind the experiment on roles of instances: real engines under a load, and the same load in simulated time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from headrace.engine.request_stream import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.evaluation.engine_requests import collect, prompt_of, share_alike
from headrace.evaluation.experiment import Conditions
from headrace.evaluation.rehearsal import drive
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.placement.roles import Role
from headrace.planning.cluster import Outcome
from headrace.planning.targets import Targets, tail
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.simulation import Arrival

THREADS = 2
STEP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Way:
    """A way to use two cores. ``gap_ms``: how long a step may take while streams wait."""

    name: str
    roles: tuple[Role, ...]
    policy: str = "fair"
    gap_ms: int | None = None
    pool_mib: int = 512


class Site:
    """The engines of one way, which exchange requests only because of their roles; a context manager."""

    def __init__(self, conditions: Conditions, way: Way) -> None:
        self.way = way
        self._settings = EngineSettings(model=conditions.model, threads=THREADS, pool_mib=way.pool_mib, preempt="recompute")
        self._scheduling = SchedulingSettings(
            prefix_reuse="off", policy=way.policy, step_tokens=STEP_TOKENS, gap_target_ms=way.gap_ms
        )
        self.group = InstanceGroup(GroupOptions(len(way.roles), roles=way.roles, round_seconds=0.0))

    async def __aenter__(self) -> Site:
        await self.group.start(self._settings, self._scheduling)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.group.stop()

    def submit(self, prompt: list[int], params: SamplingParams) -> RequestStream:
        """Start a request."""
        return self.group.submit(Submit(self.group.new_request_id(), prompt, params, speculation=0))


def scale_of(outcome: Outcome, targets: Targets) -> float:
    """The multiple of both promises that their share of the requests would have got."""
    return tail([max(one.ttft / targets.ttft, one.tpot / targets.tpot) for one in outcome.served], 100 * targets.share)


def ttft_of(outcome: Outcome, percent: float = 99) -> float:
    """A percentile of the seconds to the first token."""
    return tail([one.ttft for one in outcome.served], percent)


@dataclass(frozen=True, slots=True)
class Exact:
    """``same``: per cent of the requests that gave the same bits; ``beyond``: tokens that nobody asked for, or that lack."""

    same: float
    beyond: int
    handoffs: int


async def same_answers(plain: Site, split: Site, lengths: Sequence[int], output: int) -> Exact:
    """The same requests all at once where nobody moves, and where each goes on in another engine behind its first token."""
    found = []
    before = split.group.handoff.done
    for site in (plain, split):
        streams = [
            site.submit(
                prompt_of(length, 1000 + number),
                SamplingParams(max_tokens=output, temperature=(0.0, 0.9)[number % 2], seed=number, top_logprobs=2, ignore_eos=True),
            )
            for number, length in enumerate(lengths)
        ]
        found.append(await asyncio.gather(*map(collect, streams)))
    beyond = sum(abs(len(said.tokens) - output) for answer in found[1] for said in answer)
    return Exact(share_alike(*found), beyond, split.group.handoff.done - before)


@dataclass(frozen=True, slots=True)
class Burst:
    """The most requests that waited for room where prompts are computed and where tokens are made; per cent that ended well."""

    prompts: int
    tokens: int
    finished: float


async def burst(site: Site, count: int, lengths: tuple[int, int]) -> Burst:
    """Many requests at one moment into a small pool."""
    running = asyncio.create_task(drive(site.group, [Arrival(0.0, *lengths)] * count, 7))
    most = [0, 0]
    while not running.done():
        for number, status in enumerate(site.group.statuses()):
            most[number] = max(most[number], status.gauges.waiting)
        await asyncio.sleep(0.005)
    outcome = await running
    return Burst(most[0], most[1], 100.0 * sum(one.progress.count == one.output for one in outcome.served) / count)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Roles exchanged under load: seconds until everybody was in place, requests that differ, processes that were started."""

    seconds: float
    differ: int
    started: int


async def exchange(site: Site, count: int, length: int, output: int) -> Exchange:
    """Turn the roles of a pair round while requests run in both."""
    group = site.group
    params = [SamplingParams(max_tokens=output, temperature=0.9, seed=number, ignore_eos=True) for number in range(count)]
    alone = [await collect(site.submit(prompt_of(length, number), params[number])) for number in range(count)]
    pids = [status.pid for status in group.statuses()]
    answers = [asyncio.create_task(collect(site.submit(prompt_of(length, number), params[number]))) for number in range(count)]
    while group.statuses()[1].requests < count // 2 and not all(one.done() for one in answers):
        await asyncio.sleep(0.005)
    began = time.perf_counter()
    group.handoff.change({0: "decode", 1: "prefill"})
    while group.statuses()[1].requests and not all(one.done() for one in answers):
        await asyncio.sleep(0.002)
    seconds = time.perf_counter() - began
    differ = sum(one != other for one, other in zip(await asyncio.gather(*answers), alone, strict=True))
    group.handoff.change({0: "prefill", 1: "decode"})
    started = sum(pid != status.pid for pid, status in zip(pids, group.statuses(), strict=True))
    return Exchange(seconds, differ, started)
