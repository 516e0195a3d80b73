"""The client with a real engine process and the bundled model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from headrace.engine.client import EngineClient, RequestStream
from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit, TokenOutput
from headrace.errors import HeadraceError

pytestmark = pytest.mark.model
T = TypeVar("T")
PROMPT = [504, 3575, 282, 4649, 314]
LONG = SamplingParams(max_tokens=800, ignore_eos=True)


def drive(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


@asynccontextmanager
async def engine(deaths: list[HeadraceError] | None = None) -> AsyncIterator[EngineClient]:
    client = EngineClient(on_death=None if deaths is None else deaths.append)
    ready = await client.start(EngineSettings(threads=1, pool_mib=64))
    assert client.ready == ready
    try:
        yield client
    finally:
        await client.stop()


async def tokens(client: EngineClient, params: SamplingParams) -> dict[int, list[int]]:
    got: dict[int, list[int]] = {}
    async for outputs in client.submit(Submit(client.new_request_id(), PROMPT, params)):
        for output in outputs:
            got.setdefault(output.choice, []).extend(output.tokens)
    return got


async def exhaust(stream: RequestStream) -> None:
    async for _ in stream:
        pass


def test_a_day_in_the_life() -> None:
    async def work() -> None:
        async with engine() as client:
            greedy = SamplingParams(max_tokens=5, temperature=0.0)
            several = SamplingParams(max_tokens=5, n=2, seed=5)
            results = await asyncio.gather(*(tokens(client, params) for params in (greedy, several, greedy)))
            assert results[0] == results[2]
            assert results[0][0][0] == 7042  # Paris
            assert set(results[1]) == {0, 1}
            with pytest.raises(HeadraceError) as refused:
                await tokens(client, SamplingParams(grammar=GrammarSpec("regex", "(")))
            assert refused.value.code == "invalid_grammar"
            with pytest.raises(HeadraceError) as refused:
                await tokens(client, SamplingParams(max_tokens=100_000))
            assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "max_tokens")
            assert client.live == 0

            async with client.submit(Submit(client.new_request_id(), PROMPT, LONG)) as stream:
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await tokens(client, greedy)
            assert client.gauges.pages_free == client.gauges.pages_total

            stream = client.submit(Submit(client.new_request_id(), PROMPT, SamplingParams(max_tokens=800, n=2, ignore_eos=True)))
            first = await anext(stream)
            stream.cancel(1)
            rest: list[TokenOutput] = []
            async for outputs in stream:
                rest += outputs
                if len(rest) > 3:
                    stream.cancel()
            assert {output.choice for output in first} == {0, 1}
            assert {output.choice for output in rest} == {0}

            running = asyncio.create_task(tokens(client, SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)))
            await asyncio.sleep(0)
            assert await client.drain(30.0)
            assert len((await running)[0]) == 10
            with pytest.raises(HeadraceError) as refused:
                client.submit(Submit(client.new_request_id(), PROMPT, greedy))
            assert refused.value.code in ("draining", "engine_dead")

    drive(work())


def test_death_reaches_every_stream_and_the_owner() -> None:
    async def work() -> None:
        deaths: list[HeadraceError] = []
        async with engine(deaths) as client:
            streams = [client.submit(Submit(client.new_request_id(), PROMPT, LONG)) for _ in range(3)]
            for stream in streams:
                await anext(stream)
            assert client._process is not None
            os.kill(client._process.pid, signal.SIGTERM)  # ignored: the API process drains
            await anext(streams[0])
            os.kill(client._process.pid, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(HeadraceError) as dead:
                    await exhaust(stream)
                assert dead.value.code == "engine_dead"
            assert [death.code for death in deaths] == ["engine_dead"]
            assert client.ready is None
            with pytest.raises(HeadraceError):
                client.submit(Submit(client.new_request_id(), PROMPT, LONG))

    drive(work())


def test_a_model_that_is_not_there_is_told_by_start() -> None:
    async def work() -> None:
        deaths: list[HeadraceError] = []
        client = EngineClient(on_death=deaths.append)
        with pytest.raises(HeadraceError) as missing:
            await client.start(EngineSettings(model="smolm2"))
        assert missing.value.code == "model_not_found"
        assert "did you mean 'smollm2'" in missing.value.message
        assert deaths == []
        assert await client.stop() == 1

    drive(work())


def test_the_engine_ends_with_its_starter() -> None:
    code = (
        "import asyncio\n"
        "from headrace.engine.client import EngineClient\n"
        "from headrace.engine.settings import EngineSettings\n"
        "async def main():\n"
        "    client = EngineClient()\n"
        "    await client.start(EngineSettings(threads=1, pool_mib=16))\n"
        "    print(client._process.pid, flush=True)\n"
        "    import os; os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 9
    pid = int(ended.stdout)
    deadline = asyncio.run(_gone(pid))
    assert deadline


async def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        await asyncio.sleep(0.1)
    return False
