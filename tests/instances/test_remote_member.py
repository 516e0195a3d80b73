"""Two engines that join over TCP: the same tokens, moved between them, and when a worker is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from test_group import KINDS, PROMPT, answer, collect, wander

from headrace.engine.joining import join
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.evaluation.two_machines import worker_command
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.hall_key import KEY_VARIABLE
from headrace.placement.joining import Joining

KEY = b"0123456789abcdef0123456789abcdef"


def start_worker(port: int, key: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*worker_command(f"127.0.0.1:{port}", key), *more], stdin=subprocess.DEVNULL)


@asynccontextmanager
async def joined(key: Path) -> AsyncIterator[tuple[InstanceGroup, list[subprocess.Popen[bytes]]]]:
    made = InstanceGroup(GroupOptions(2, round_seconds=0.0, restart_seconds=0.05, joining=Joining(2, "127.0.0.1", 0)))
    await made.launch(EngineSettings(pool_mib=128, preempt="recompute"))
    assert made.slots.hall is not None
    workers = [start_worker(made.slots.hall.port, key) for _ in range(2)]
    try:
        await made.started()
        yield made, workers
    finally:
        for one in workers:
            one.kill()
        await made.stop()
        for one in workers:
            one.wait()


@pytest.mark.model
def test_workers_join_requests_move_and_a_kill_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    monkeypatch.setenv(KEY_VARIABLE, str(key))

    async def work() -> None:
        async with joined(key) as (made, workers):
            params = KINDS["penalties"]
            alone = await answer(made, params)
            visitors = asyncio.create_task(asyncio.to_thread(come_in_vain, made))
            moved = tries = 0
            while not moved and tries < 10:
                stream = made.submit(Submit(made.new_request_id(), PROMPT, params, speculation=0))
                moving = asyncio.create_task(wander(made, stream.request_id))
                assert await collect(stream) == alone
                moved, tries = await moving, tries + 1
            assert moved, "it was never moved"
            assert made.relocation.counts.pages > 0
            await visitors
            await until_counted(made)
            await killed(made, workers, key)
            assert made.strays == 0

    asyncio.run(asyncio.wait_for(work(), 300))


def come_in_vain(made: InstanceGroup) -> None:
    """A web client at every door, and a worker when there is no place, while requests run and move."""
    assert made.slots.hall is not None
    doors = [made.slots.hall.port, *(int(slot.member.address.rpartition(":")[2]) for slot in made.slots.all)]
    for port in doors:
        with socket.create_connection(("127.0.0.1", port)) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: headrace\r\n\r\n" * 9)
            with suppress(ConnectionResetError):
                while visitor.recv(1 << 16):
                    pass
    with pytest.raises(HeadraceError, match="all of its places are taken"):
        join(("127.0.0.1", doors[0]), KEY)


async def until_counted(made: InstanceGroup) -> None:
    wanted = {("join", "stranger"): 1, ("join", "full"): 1, ("pages", "stranger"): 2}
    while made.refusals() != wanted:  # pages are told with the next sign of life
        await asyncio.sleep(0.02)


async def killed(made: InstanceGroup, workers: list[subprocess.Popen[bytes]], key: Path) -> None:
    """A worker ends in the middle of an answer, which goes on elsewhere behind what its stream had; another worker joins."""
    params = SamplingParams(max_tokens=100, seed=5, ignore_eos=True)
    alone = await answer(made, params)
    streams = [made.submit(Submit(made.new_request_id(), PROMPT, params, speculation=0)) for _ in range(2)]
    tasks: list[asyncio.Task[list[Any]]] = [asyncio.create_task(collect(stream)) for stream in streams]
    holders: list[int] = []
    while sorted(holders) != [0, 1]:  # one request on each, so that one of them loses its engine
        await asyncio.sleep(0.005)
        owners = [made.owned(stream.request_id) for stream in streams]
        assert all(owner is not None for owner in owners), "they ended before both instances had one"
        holders = [owner.holder.number for owner in owners if owner is not None and owner.holder is not None]
        if holders in ([0, 0], [1, 1]):
            await made.balancing.move(streams[0].request_id, 1 - holders[0])
    os.kill(workers[0].pid, signal.SIGKILL)
    assert await asyncio.gather(*tasks) == [alone, alone]
    assert made.replays == 1
    workers.append(start_worker(made.slots.hall.port if made.slots.hall is not None else 0, key, "--role", "prefill"))
    while len(made.slots.serving) < 2:
        await asyncio.sleep(0.02)
    comes = next(number for number, role in made.handoff.roles.items() if role == "prefill")
    made.handoff.change({1 - comes: "decode"})
    done = made.handoff.done
    assert await answer(made, params) == alone
    assert made.handoff.done == done + 1, "prompts there, tokens here"


@pytest.mark.parametrize("text", ["join:0@h:1", "join:2", "join:2@h", "join:65@h:1", "join:x@h:1", "join:2@h:70000", "join:²@h:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    from headrace.placement.roles import read_instances

    with pytest.raises(HeadraceError, match="join:N@HOST:PORT"):
        read_instances([text])
    assert read_instances(["join:3@[::1]:7400"]) == ("all",) * 3
