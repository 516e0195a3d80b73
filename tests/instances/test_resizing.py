"""As many engine processes as the load wants, with the same bits."""

from __future__ import annotations

import asyncio

import pytest
from test_group import collect, drive

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.placement.scaling import ScalingRule

pytestmark = pytest.mark.model


async def until(made: InstanceGroup, states: list[str]) -> None:
    while [status.state for status in made.statuses()] != states:
        await asyncio.sleep(0.01)


def test_instances_start_and_end_as_the_load_wants() -> None:
    rule = ScalingRule(least=1, most=2, crowd=1, patience=1, calm=2)
    options = GroupOptions(2, round_seconds=0.02, scaling=rule, look_seconds=0.05)

    async def work() -> None:
        made = InstanceGroup(options)
        ready = await made.start(EngineSettings(threads=2, pool_mib=128, preempt="recompute"))
        try:
            assert [status.state for status in made.statuses()] == ["serving", "gone"]

            def ask(seed: int, output: int) -> Submit:
                params = SamplingParams(max_tokens=output, seed=seed, ignore_eos=True)
                return Submit(made.new_request_id(), list(range(200, 240 + seed)), params, speculation=0)

            alone = [await collect(made.submit(ask(seed, 40))) for seed in range(3)]
            long = [made.submit(ask(seed, 1500)) for seed in range(3)]
            readers = [asyncio.create_task(collect(stream)) for stream in long]
            await until(made, ["serving", "serving"])
            assert made.resizing.started == 1
            assert made.statuses()[1].gauges.pages_total in (0, ready.pages_total)
            beside = [await collect(made.submit(ask(seed, 40))) for seed in range(3)]
            for stream in long:
                stream.cancel()
            await asyncio.gather(*readers)
            while made.resizing.ended < 1:
                await asyncio.sleep(0.01)
            assert [await collect(made.submit(ask(seed, 40))) for seed in range(3)] == alone == beside
            while sorted(status.state for status in made.statuses()) != ["gone", "serving"]:
                await asyncio.sleep(0.01)
            assert made.strays == 0
        finally:
            await made.stop()

    drive(work())
