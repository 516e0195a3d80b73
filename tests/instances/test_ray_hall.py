"""Instances that a Ray cluster runs. The real cluster is needed for the last test: ``pip install 'headrace[cluster]'``."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import signal
import subprocess
import sys

import msgspec
import pytest
from test_group import KINDS, answer

from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.ray_hall import RayHall
from headrace.instances.ray_launcher import _line
from headrace.instances.ray_wire import FromLauncher, Unplaced, Wanted
from headrace.placement.joining import Joining, read_joining
from headrace.placement.roles import read_instances

HAS_RAY = importlib.util.find_spec("ray") is not None


def test_a_cluster_is_named_or_not() -> None:
    assert read_joining(["ray:2"]) == Joining(2, "", 0, cluster="")
    assert read_joining(["ray:3@auto"]) == Joining(3, "", 0, cluster="auto")
    assert read_joining(["ray:3@[::1]:6379"]) == Joining(3, "", 0, cluster="[::1]:6379")
    assert read_instances(["ray:3@10.0.0.5:6379"]) == ("all",) * 3


@pytest.mark.parametrize("text", ["ray:0", "ray:", "ray:2@", "ray:2@a b", "ray:65", "ray:2@ray://x/y", "ray:two"])
def test_what_names_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(HeadraceError, match="ray:N@ADDRESS") as refused:
        read_instances([text])
    assert refused.value.param == "instances"


def test_without_ray_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HeadraceError, match=r"pip install 'headrace\[cluster\]'") as refused:
        InstanceGroup(GroupOptions(2, joining=Joining(2, "", 0, cluster="")))
    assert (refused.value.code, refused.value.param) == ("invalid_setting", "instances")


def test_the_launcher_ends_with_the_server() -> None:
    for said in (b"", b"half a line", b"x" * 70_000):
        with pytest.raises(SystemExit):
            _line(io.BytesIO(said))
    ended = subprocess.run(
        [sys.executable, "-m", "headrace.instances.ray_launcher"], stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert ended.returncode == 0


@pytest.mark.skipif(HAS_RAY, reason="Ray is here")
def test_a_launcher_that_can_not_reach_ray_says_so() -> None:
    wanted = msgspec.json.encode(Wanted("", 1, 1)) + b"\n"
    done = subprocess.run(
        [sys.executable, "-m", "headrace.instances.ray_launcher"], input=wanted, stdout=subprocess.PIPE, timeout=60, check=True
    )
    said = msgspec.json.decode(done.stdout, type=FromLauncher)
    assert isinstance(said, Unplaced)
    assert "ray" in said.reason


@pytest.mark.model
@pytest.mark.skipif(not HAS_RAY, reason="no Ray here: pip install 'headrace[cluster]'")
def test_a_cluster_of_this_machine_runs_instances_and_replaces_them() -> None:
    async def work() -> None:
        made = InstanceGroup(GroupOptions(2, round_seconds=0.0, restart_seconds=0.05, joining=Joining(2, "", 0, cluster="")))
        try:
            await made.start(EngineSettings(threads=1, pool_mib=128, preempt="recompute"))
            hall = made.slots.hall
            assert isinstance(hall, RayHall)
            alone = await answer(made, KINDS["penalties"])
            while len(hall.placed) < 2:
                await asyncio.sleep(0.02)
            running = [asyncio.create_task(answer(made, KINDS["penalties"])) for _ in range(4)]
            await asyncio.sleep(0.05)
            os.kill(hall.placed[0].pid, signal.SIGKILL)
            assert await asyncio.gather(*running) == [alone] * 4
            while len(made.slots.serving) < 2:
                await asyncio.sleep(0.05)
            assert await answer(made, KINDS["penalties"]) == alone
        finally:
            await made.stop()

    asyncio.run(asyncio.wait_for(work(), 240))


@pytest.mark.model
@pytest.mark.skipif(not HAS_RAY, reason="no Ray here: pip install 'headrace[cluster]'")
def test_a_launcher_that_ends_is_replaced_with_its_workers() -> None:
    async def work() -> None:
        made = InstanceGroup(GroupOptions(1, round_seconds=0.0, restart_seconds=0.05, joining=Joining(1, "", 0, cluster="")))
        try:
            await made.start(EngineSettings(threads=1, pool_mib=128, preempt="recompute"))
            hall = made.slots.hall
            assert isinstance(hall, RayHall)
            alone = await answer(made, KINDS["penalties"])
            first = hall._launcher
            assert first is not None
            first.kill()
            while made.slots.all[0].crashes == 0 or not made.slots.serving:
                await asyncio.sleep(0.05)
            assert hall._launcher is not first
            assert await answer(made, KINDS["penalties"]) == alone
        finally:
            await made.stop()

    asyncio.run(asyncio.wait_for(work(), 240))


@pytest.mark.skipif(not HAS_RAY, reason="no Ray here: pip install 'headrace[cluster]'")
def test_a_cluster_without_room_is_an_error_that_says_what_it_has() -> None:
    async def work() -> None:
        made = InstanceGroup(GroupOptions(2, joining=Joining(2, "", 0, cluster="")))
        with pytest.raises(HeadraceError, match=r"no room for 2 workers of 128 CPUs and 128 MiB: its 1 nodes have \d+ CPUs"):
            await made.start(EngineSettings(threads=128, pool_mib=128))

    asyncio.run(asyncio.wait_for(work(), 240))
