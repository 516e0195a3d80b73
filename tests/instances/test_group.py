"""Two real engine processes as one: the same tokens, whoever makes them and whatever ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from headrace.engine.client import EngineClient, RequestStream
from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.maker import engine_maker

pytestmark = pytest.mark.model
T = TypeVar("T")
PROMPT = [504, 3575, 282, 4649, 314] * 50
SCHEMA = '{"type":"object","properties":{"a":{"type":"string","minLength":300}},"required":["a"],"additionalProperties":false}'
KINDS = {
    "greedy": SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True),
    "penalties": SamplingParams(max_tokens=40, seed=3, repetition_penalty=1.2, top_logprobs=2, prompt_logprobs=1, ignore_eos=True),
    "three choices": SamplingParams(max_tokens=30, seed=3, n=3, ignore_eos=True),
    "best of three": SamplingParams(max_tokens=30, seed=3, best_of=3, ignore_eos=True),
    "grammar": SamplingParams(max_tokens=80, seed=3, grammar=GrammarSpec("json_schema", SCHEMA)),
}


def drive(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 90))


@asynccontextmanager
async def group(**options: Any) -> AsyncIterator[InstanceGroup]:
    made = InstanceGroup(GroupOptions(2, **{"round_seconds": 0.0, "restart_seconds": 0.05, **options}))
    await made.start(EngineSettings(threads=2, pool_mib=256, preempt="recompute"))
    try:
        yield made
    finally:
        await made.stop()


async def collect(stream: RequestStream) -> list[Any]:
    """All that a stream gives, choice by choice."""
    got: dict[int, list[Any]] = {}
    async for outputs in stream:
        for output in outputs:
            known = got.setdefault(output.choice, [[], [], [], None])
            known[0] += output.tokens
            known[1] += output.logprobs or []
            known[2] += output.prompt_logprobs or []
            known[3] = output.finish
    return [got[choice] for choice in sorted(got)]


async def answer(made: InstanceGroup, params: SamplingParams) -> list[Any]:
    return await collect(made.submit(Submit(made.new_request_id(), PROMPT, params, speculation=0)))


async def wander(made: InstanceGroup, request_id: int) -> int:
    """Move a request to and fro until it ends; how often that went well."""
    moved = 0
    while (owned := made.owned(request_id)) is not None:
        if owned.holder is not None and not owned.move:
            moved += await made.balancing.move(request_id, 1 - owned.holder.number) is None
        await asyncio.sleep(0.02)
    return moved


def test_requests_move_and_end_as_if_nothing_had_been() -> None:
    async def work() -> None:
        async with group() as made:
            for name, params in KINDS.items():
                alone = await answer(made, params)
                moved = tries = 0
                while not moved and tries < 10:  # a short answer may end before its first move does
                    stream = made.submit(Submit(made.new_request_id(), PROMPT, params, speculation=0))
                    moving = asyncio.create_task(wander(made, stream.request_id))
                    assert await collect(stream) == alone, name
                    moved, tries = await moving, tries + 1
                assert moved, f"{name} was never moved"
            assert made.strays == 0
            computed = made.gauges.prompt_tokens
            assert computed <= len(KINDS) * len(PROMPT) + 64, "a move made somebody compute a prompt again"
            await second_turns(made)
            await cancelled_on_the_way(made)
            await emptied(made)

    drive(work())


async def second_turns(made: InstanceGroup) -> None:
    """A talk goes to and fro: its second turn brings what is new. Without asking, everything: the same tokens."""
    params = SamplingParams(max_tokens=40, seed=11, ignore_eos=True)
    got: list[list[Any]] = []
    for asks in (False, True):
        made.relocation._ask_first = asks
        prompt, answers = PROMPT, []
        for _ in range(2):
            sent, moved = 0, 0
            while not moved:
                sent = made.relocation.counts.pages
                stream = made.submit(Submit(made.new_request_id(), prompt, params, speculation=0, tenant=f"asks: {asks}"))
                moving = asyncio.create_task(wander(made, stream.request_id))
                answers.append(await collect(stream))
                moved = await moving
            sent = made.relocation.counts.pages - sent
            prompt = [*prompt, *answers[-1][0][0], *PROMPT[:20]]
        assert (sent < moved * (len(PROMPT) // 16)) == asks, f"{sent} pages were sent in {moved} moves"
        got.append(answers[-1])
    assert got[0] == got[1]
    made.relocation._ask_first = True
    assert made.relocation.counts.spared_bytes > 0


async def cancelled_on_the_way(made: InstanceGroup) -> None:
    for seconds in (0.0, 0.002, 0.01):
        stream = made.submit(Submit(made.new_request_id(), PROMPT, SamplingParams(max_tokens=500, ignore_eos=True)))
        await anext(stream)
        owned = made.owned(stream.request_id)
        assert owned is not None
        assert owned.holder is not None
        moving = asyncio.create_task(made.balancing.move(stream.request_id, 1 - owned.holder.number))
        await asyncio.sleep(seconds)
        stream.cancel()
        await moving
    for member in made.slots.living:
        member.pinged = 0.0
        member.ping()
    await asyncio.sleep(0.3)
    assert made.gauges.running == 0
    assert made.gauges.pages_free == made.gauges.pages_total


async def emptied(made: InstanceGroup) -> None:
    """An instance is emptied and ends while it has requests, and none of them notices; then it starts again."""
    params = SamplingParams(max_tokens=60, seed=8, ignore_eos=True)
    alone = await answer(made, params)
    streams = [made.submit(Submit(made.new_request_id(), PROMPT, params, speculation=0)) for _ in range(4)]
    answers = [asyncio.create_task(collect(stream)) for stream in streams]
    await asyncio.sleep(0.1)
    assert await asyncio.wait_for(made.draining.drain(1), 30)
    assert made.statuses()[1].state == "drained"
    assert made.statuses()[1].requests == 0
    with pytest.raises(HeadraceError, match="the only one that serves"):
        made.draining.drain(0)
    with pytest.raises(HeadraceError, match="no instance 2"):
        made.draining.drain(2)
    for one in answers:
        assert await one == alone
    assert await answer(made, params) == alone
    await taken_back(made, params, alone)
    assert await asyncio.wait_for(made.draining.drain(1, stop=True), 30)
    assert made.statuses()[1].state == "gone"
    assert made.slots[1].crashes == 0
    assert await answer(made, params) == alone
    made.undrain(1)
    while made.slots[1].state != "serving":
        await asyncio.sleep(0.02)
    assert await asyncio.wait_for(made.draining.drain(0), 30)
    assert await answer(made, params) == alone


async def taken_back(made: InstanceGroup, params: SamplingParams, alone: list[Any]) -> None:
    """An instance that was emptied gets requests again; one that is taken back while it is emptied just goes on."""
    made.undrain(1)
    assert made.slots[1].state == "serving"
    streams = [made.submit(Submit(made.new_request_id(), PROMPT, params, speculation=0)) for _ in range(4)]
    assert made.statuses()[1].requests > 0
    leaving = made.draining.drain(1)
    made.undrain(1)
    assert not await leaving
    for stream in streams:
        assert await collect(stream) == alone


def test_ends_and_hangs_cost_no_token() -> None:
    async def work() -> None:
        async with group(ping_seconds=0.1, hang_seconds=2.0) as made:
            for number, name in ((signal.SIGKILL, "penalties"), (signal.SIGSTOP, "grammar")):
                alone = await answer(made, KINDS[name])
                stream = made.submit(Submit(made.new_request_id(), PROMPT, KINDS[name], speculation=0))
                first = await anext(stream)
                owned = made.owned(stream.request_id)
                assert owned is not None
                assert owned.holder is not None
                assert owned.holder.pid is not None
                os.kill(owned.holder.pid, number)
                rest = await collect(stream)
                got = [first[0].tokens + rest[0][0], (first[0].logprobs or []) + rest[0][1]]
                for output in first[1:]:
                    got[0][len(first[0].tokens) : len(first[0].tokens)] = output.tokens
                assert got[0] == alone[0][0], name
                assert got[1] == alone[0][1] or len(first) > 1
            assert made.replays >= 2  # on a busy machine an engine may look as if it hung
            while [slot.state for slot in made.slots.all] != ["serving", "serving"]:
                await asyncio.sleep(0.05)
            assert sum(slot.crashes for slot in made.slots.all) >= 2
            await both_end(made)

    drive(work())


async def both_end(made: InstanceGroup) -> None:
    """Nobody is left for a while: requests wait for the first that comes back; a third death gives one up."""
    alone = await answer(made, KINDS["greedy"])
    stream = made.submit(Submit(made.new_request_id(), PROMPT, KINDS["greedy"]))
    for slot in made.slots.all:
        slot.member.kill()
    assert await collect(stream) == alone
    stream = made.submit(Submit(made.new_request_id(), PROMPT, KINDS["greedy"]))
    owned = made.owned(stream.request_id)
    assert owned is not None
    owned.deaths = 2
    assert owned.holder is not None
    owned.holder.kill()
    with pytest.raises(HeadraceError, match="one after the other"):
        await collect(stream)


def test_less_than_one_instance_is_refused_and_one_is_no_group() -> None:
    with pytest.raises(HeadraceError, match="at least 1"):
        InstanceGroup(GroupOptions(0))
    assert type(engine_maker(("all",))(lambda error: None)) is EngineClient
    with pytest.raises(HeadraceError, match="2 instances can't have 1 roles"):
        GroupOptions(2, roles=("all",))
