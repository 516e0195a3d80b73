"""Two real engines, one for prompts and one for tokens: the same bits as one engine, and roles that change meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.engine.client import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.scheduling.settings import SchedulingSettings

pytestmark = pytest.mark.model
LENGTHS = [n for k in (1, 4, 17) for n in (16 * k - 1, 16 * k, 16 * k + 1)]
KINDS = [
    SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=24, seed=3, repetition_penalty=1.2, top_logprobs=2, ignore_eos=True),
    SamplingParams(max_tokens=16, seed=5, n=2, ignore_eos=True),
    SamplingParams(max_tokens=1, seed=5, ignore_eos=True),
]


def prompt(length: int) -> list[int]:
    return [500 + (length * 31 + at * 7) % 900 for at in range(length)]


async def collect(stream: RequestStream) -> dict[int, Any]:
    got: dict[int, Any] = {}
    async for outputs in stream:
        for output in outputs:
            known = got.setdefault(output.choice, [[], []])
            known[0] += output.tokens
            known[1] += output.logprobs or []
    return got


async def all_answers(made: InstanceGroup) -> list[dict[int, Any]]:
    requests = [
        Submit(made.new_request_id(), prompt(length), KINDS[at % len(KINDS)], speculation=0)
        for at, length in enumerate(LENGTHS + LENGTHS[1:])
    ]
    return list(await asyncio.gather(*(collect(made.submit(request)) for request in requests)))


def holders(made: InstanceGroup) -> dict[int, int]:
    return {status.number: status.requests for status in made.statuses()}


def test_a_split_pair_gives_the_tokens_of_a_plain_one_and_roles_change_while_requests_run() -> None:
    async def work() -> None:
        made = InstanceGroup(GroupOptions(2, round_seconds=0.0))
        await made.start(EngineSettings(threads=2, pool_mib=256, preempt="recompute"), SchedulingSettings(prefix_reuse="off"))
        try:
            plain = await all_answers(made)
            assert made.handoff.done == 0
            made.handoff.roles = {0: "prefill", 1: "decode"}
            assert await all_answers(made) == plain
            assert made.handoff.done >= len(LENGTHS)
            assert made.gauges.prompt_tokens == 2 * sum(map(len, map(prompt, LENGTHS + LENGTHS[1:]))), "a prompt was computed twice"
            await changes(made)
            assert made.strays == 0
        finally:
            await made.stop()

    asyncio.run(asyncio.wait_for(work(), 90))


async def changes(made: InstanceGroup) -> None:
    """The roles are exchanged while requests run: they go on in the other one, with the same tokens."""
    params = SamplingParams(max_tokens=150, seed=9, ignore_eos=True)
    request = Submit(made.new_request_id(), prompt(65), params, speculation=0)
    alone = await collect(made.submit(request))
    stream = made.submit(Submit(made.new_request_id(), prompt(65), params, speculation=0))
    answer = asyncio.create_task(collect(stream))
    while holders(made) != {0: 0, 1: 1}:
        await asyncio.sleep(0.002)
        assert not answer.done(), "it ended before it was handed over"
    with pytest.raises(HeadraceError, match="leave nobody for tokens"):
        made.handoff.change({1: "prefill"})
    with pytest.raises(HeadraceError, match="no instance 7; instances are 0 to 1"):
        made.handoff.change({7: "prefill"})
    assert made.handoff.roles == {0: "prefill", 1: "decode"}
    made.handoff.change({0: "decode", 1: "prefill"})
    while holders(made) != {0: 1, 1: 0}:
        await asyncio.sleep(0.002)
        assert not answer.done(), "it ended where prompts are computed"
    assert await answer == alone
    assert made.handoff.waiting == 0
