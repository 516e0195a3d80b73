"""Instances that a Ray cluster runs, against an engine of the server's own: speed, equal bits, an actor killed in a stream."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from headrace.engine.client import EngineClient
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.evaluation.engine_requests import Said, collect, prompt_of, share_alike
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.ray_hall import RayHall
from headrace.placement.joining import Joining
from headrace.scheduling.settings import SchedulingSettings


@dataclass(frozen=True, slots=True)
class _Load:
    """So many requests at once, of ``prompt`` and ``output`` tokens each."""

    name: str
    requests: int
    prompt: int
    output: int


_LOADS = (
    _Load("short prompts, long answers", 8, 32, 64),
    _Load("long prompts, short answers", 6, 512, 8),
    _Load("both", 8, 192, 32),
)


def run(conditions: Conditions) -> Findings:
    """One cluster of this machine for each shape; whoever is not asked sleeps."""
    if importlib.util.find_spec("ray") is None:
        raise HeadraceError(
            "invalid_setting", "this experiment needs the cluster extra: pip install 'headrace[cluster]'", param="name"
        )
    return asyncio.run(_run(conditions))


async def _run(conditions: Conditions) -> Findings:
    rounds = 3 if conditions.quick else 9
    claims = []
    async with _engine(EngineClient(), conditions, 2) as own:
        async with _engine(_group(1), conditions, 2) as one:
            conditions.report("one instance under Ray", 0, 3)
            rates = await _rates([own, one], _LOADS[0], rounds, conditions.seed)
            claims.append(
                Claim("one", "tokens/s, one instance under Ray / an engine of the server's own", ">=", 0.97,
                      _ratio(rates[1], rates[0]), "x", f"{statistics.median(rates[1]):.0f} and {statistics.median(rates[0]):.0f}")
            )  # fmt: skip
        group = _group(2)
        async with _engine(group, conditions, 1) as two:
            for number, load in enumerate(_LOADS):
                conditions.report("two of one thread against one of two", number, len(_LOADS))
                rates = await _rates([own, two], load, rounds, conditions.seed)
                note = f"{statistics.median(rates[1]):.0f} and {statistics.median(rates[0]):.0f}"
                claims.append(
                    Claim(f"two_{number}", f"requests/s, two instances of one thread / one of two: {load.name}", ">=", 0.0,
                          _ratio(rates[1], rates[0]), "x", note)
                )  # fmt: skip
            conditions.report("an actor killed", 2, 3)
            claims += await _killed(own, group, conditions)
    return Findings(tuple(claims))


def _group(instances: int) -> InstanceGroup:
    return InstanceGroup(GroupOptions(instances, joining=Joining(instances, "", 0, cluster="")))


@asynccontextmanager
async def _engine(client: EngineClient, conditions: Conditions, threads: int) -> AsyncIterator[EngineClient]:
    settings = EngineSettings(model=conditions.model, threads=threads, pool_mib=512, preempt="recompute")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.stop)
        await client.start(settings, SchedulingSettings(prefix_reuse="off"))
        yield client


async def _rates(clients: Sequence[EngineClient], load: _Load, rounds: int, seed: int) -> list[list[float]]:
    """Requests a second of each, in turns; a first round warms everybody up."""
    rates: list[list[float]] = [[] for _ in clients]
    for number in range(rounds + 1):
        for client, found in zip(clients, rates, strict=True):
            began = time.perf_counter()
            await _all(client, load, seed + number)
            if number:
                found.append(load.requests / (time.perf_counter() - began))
    return rates


async def _all(client: EngineClient, load: _Load, seed: int) -> list[list[Said]]:
    streams = []
    for number in range(load.requests):
        prompt = prompt_of(load.prompt, 1000 * seed + number)
        params = SamplingParams(
            max_tokens=load.output, temperature=(0.0, 0.9)[number % 2], seed=number, ignore_eos=True, top_logprobs=1
        )
        streams.append(client.submit(Submit(client.new_request_id(), prompt, params, speculation=0)))
    return list(await asyncio.gather(*map(collect, streams)))


async def _killed(own: EngineClient, group: InstanceGroup, conditions: Conditions) -> list[Claim]:
    """The process of an actor is killed while all its requests stream."""
    hall = group.slots.hall
    assert isinstance(hall, RayHall), "a group of a cluster"
    load = _Load("", 6, 64, 48 if conditions.quick else 160)
    alone = await _all(own, load, conditions.seed)
    running = asyncio.create_task(_all(group, load, conditions.seed))
    await asyncio.sleep(0.4)
    while 0 not in hall.placed:
        await asyncio.sleep(0.02)
    os.kill(hall.placed[0].pid, signal.SIGKILL)
    began = time.perf_counter()
    found = await running
    while len(group.slots.serving) < 2 and time.perf_counter() - began < 120:
        await asyncio.sleep(0.05)
    return [
        Claim("killed", "requests with the same tokens and logprobs when an actor's process is killed", "==", 100,
              share_alike(alone, found), "% same bits", f"{group.replays} went on elsewhere"),
        Claim("strays", "outputs of an engine that did not have the request", "==", 0, group.strays, "outputs"),
        Claim("again", "until Ray has put another in its place and it serves", "<=", 30, time.perf_counter() - began, "s"),
    ]  # fmt: skip


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


EXPERIMENT = Experiment(
    name="ray",
    title="A Ray cluster runs the instances: near the speed of an engine of the server's own, and nothing lost with an actor.",
    source="Ray: A Distributed Framework for Emerging AI Applications (OSDI 2018)",
    minutes=2,
    run=run,
)
