"""The runs on two machines, in a network namespace of their own: ``python -m headrace.evaluation.machines_child ORDER.json``.

Lines on stdout: ``@ what`` when a part begins, and at last one of JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.engine.request_stream import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import Submit
from headrace.evaluation.engine_requests import collect, mixed_params, prompt_of, share_alike
from headrace.evaluation.two_machines import NEAR, Meddler, Network
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.hall_key import KEY_VARIABLE
from headrace.models.catalog import find_model, open_model
from headrace.placement.joining import Joining

FAULTS = (("replayed", True), ("changed", False), ("left out", True), ("replayed", False), ("changed", True), ("left out", False))
"""What is done to bytes, and whether on their way to the server."""
_LONGEST_SECONDS = 800
_PAUSE = 0.02
_TURN_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Order:
    """What to run. ``turns``: of the talk; ``faults``: how many of :data:`FAULTS`; ``hang``: seconds until silence means an end."""

    model: str
    seed: int
    folder: str
    requests: int
    output: int
    turns: int
    talk: int
    faults: int
    hang: float


@dataclass(slots=True)
class Report:
    """Shares of requests with the same bits in per cent; seconds; counts."""

    refused_model: bool = False
    told_worker: str = ""
    moved_same: float = 0.0
    moves: int = 0
    pages: int = 0
    talk_same: bool = False
    talk_bytes: list[int] = field(default_factory=list)
    doors_same: float = 0.0
    refusals: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    cut_same: float = 0.0
    cut_lost: int = 0
    gap_seconds: float = 0.0
    back_seconds: float = 0.0
    healed_same: float = 0.0
    healed_moves: int = 0
    strays: int = 0
    replays: int = 0


class Cluster:
    """A server in this namespace, and workers: one beside it (behind the meddler), one on the far machine."""

    def __init__(self, order: Order, group: InstanceGroup, network: Network, meddler: Meddler) -> None:
        self.order = order
        self.group = group
        self.network = network
        self.meddler = meddler
        self._asked = 0

    def asked(self, count: int, output: int) -> list[tuple[list[int], SamplingParams]]:
        """So many requests of different kinds; others each time."""
        made = []
        for _ in range(count):
            i, self._asked = self._asked, self._asked + 1
            made.append((prompt_of(60 + 97 * (i % 5), self.order.seed + i), mixed_params(i, output)))
        return made

    def submit(self, prompt: list[int], params: SamplingParams, tenant: str) -> RequestStream:
        """Start a request that finds no pages but its tenant's."""
        return self.group.submit(Submit(self.group.new_request_id(), prompt, params, speculation=0, tenant=tenant))

    async def alone(self, asked: Sequence[tuple[list[int], SamplingParams]]) -> list[Any]:
        """What each gets without company or moves."""
        return [await collect(self.submit(*one, tenant="alone")) for one in asked]

    async def wander(self, stream: RequestStream) -> int:
        """Move a request to and fro until it ends; how often it moved."""
        moved = 0
        while not stream.finished:
            owned = self.group.owned(stream.request_id)
            if owned is not None and owned.holder is not None and not owned.move and len(self.group.slots.serving) == 2:
                moved += await self.group.balancing.move(stream.request_id, 1 - owned.holder.number) is None
            await asyncio.sleep(_PAUSE)
        return moved

    async def moved(self, count: int, output: int, tenant: str) -> tuple[float, int]:
        """(Per cent with the same bits, moves) of requests that are moved all the time."""
        asked = self.asked(count, output)
        expected = await self.alone(asked)
        streams = [self.submit(*one, tenant=f"{tenant}{i}") for i, one in enumerate(asked)]
        wanderers = [asyncio.create_task(self.wander(stream)) for stream in streams]
        got = await asyncio.gather(*(collect(stream) for stream in streams))
        return share_alike(expected, got), sum(await asyncio.gather(*wanderers))

    async def both_serve(self) -> None:
        """Wait until two instances serve."""
        while len(self.group.slots.serving) < 2:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def cluster(order: Order, report: Report) -> AsyncIterator[Cluster]:
    """Everything running, after a worker with another model has been turned away."""
    folder = Path(order.folder)
    right, wrong, name = _models(order.model, folder)
    key = folder / "key"
    key.write_text(secrets.token_hex(32))
    os.environ[KEY_VARIABLE] = str(key)
    os.chdir(right)
    group = InstanceGroup(GroupOptions(2, round_seconds=0.0, hang_seconds=order.hang, joining=Joining(2, NEAR, 0)))
    with Network(folder) as network:
        await group.launch(EngineSettings(model=name, pool_mib=160, preempt="recompute"))
        assert group.slots.hall is not None, "instances join"
        meddler = Meddler(group.slots.hall.port)
        await meddler.open()
        made = Cluster(order, group, network, meddler)
        try:
            other = network.worker(
                group.slots.hall.port, key, far=True, folder=wrong, environment={"XDG_CACHE_HOME": str(folder / "cache")}
            )
            network.worker(meddler.port, key, far=False, folder=right)
            report.refused_model = await asyncio.to_thread(other.wait) != 0 and group.refusals().get(("join", "model")) == 1
            report.told_worker = network.said(other).strip().splitlines()[-1][-300:]
            network.worker(group.slots.hall.port, key, far=True, folder=right)
            await group.started()
            yield made
        finally:
            report.strays, report.replays = group.strays, group.replays
            report.refusals = {f"{at}: {reason}": count for (at, reason), count in group.refusals().items()}
            await group.stop()
            meddler.close()


def _models(model: str, folder: Path) -> tuple[Path, Path, str]:
    """Two folders with a model of one name: the real one, and one that differs in one byte."""
    path = Path(open_model(find_model(model)).files[-1].path)
    right, wrong = folder / "right", folder / "wrong"
    right.mkdir()
    wrong.mkdir()
    source = path if path.suffix == ".gguf" else path.parent
    (right / source.name).symlink_to(source)
    if source.is_dir():
        shutil.copytree(source, wrong / source.name)
    else:
        shutil.copyfile(source, wrong / source.name)
    changed = wrong / source.name / path.name if source.is_dir() else wrong / source.name
    with changed.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    return right, wrong, source.name


async def talk(made: Cluster, report: Report) -> None:
    """A conversation that goes to the other machine in each turn; bytes sent after the first turn, without asking and with."""
    texts = []
    for asks in (False, True):
        made.group.relocation._ask_first = asks
        rng = random.Random(made.order.seed)
        prompt = [rng.randrange(100, 40_000) for _ in range(made.order.talk)]
        before = 0
        for turn in range(made.order.turns):
            if turn == 1:
                before = made.group.relocation.counts.bytes
            stream = made.submit(prompt, SamplingParams(max_tokens=_TURN_TOKENS, seed=turn, ignore_eos=True), f"talk {asks}")
            first = await anext(stream)
            owned = made.group.owned(stream.request_id)
            if owned is not None and owned.holder is not None:
                await made.group.balancing.move(stream.request_id, 1 - owned.holder.number)
            said = [token for output in first for token in output.tokens] + (await collect(stream))[0].tokens
            prompt = [*prompt, *said, *(rng.randrange(100, 40_000) for _ in range(30))]
        texts.append(prompt)
        report.talk_bytes.append(made.group.relocation.counts.bytes - before)
    report.talk_same = texts[0] == texts[1]


async def doors(made: Cluster, report: Report) -> None:
    """Strangers at every door, a worker with a wrong key, and records that are meddled with, while requests run."""
    order = made.order
    asked = made.asked(3, 3 * order.output)
    expected = await made.alone(asked)
    same = []
    for number, (fault, to_server) in enumerate(FAULTS[: order.faults]):
        streams = [made.submit(*one, tenant=f"doors {number}") for one in asked]
        reading = [asyncio.create_task(collect(stream)) for stream in streams]
        if number == 0:
            await asyncio.to_thread(_strangers, made)
        crashes = _crashes(made)
        made.meddler.meddle(fault, to_server=to_server)
        same.append(share_alike(expected, await asyncio.gather(*reading)))
        while _crashes(made) == crashes:
            await asyncio.sleep(_PAUSE)
        report.broken += made.meddler.done
        await made.both_serve()
    report.doors_same = sum(same) / len(same)


def _crashes(made: Cluster) -> int:
    return sum(slot.crashes for slot in made.group.slots.all)


def _strangers(made: Cluster) -> None:
    wrong_key = Path(made.order.folder) / "wrong key"
    wrong_key.write_text(secrets.token_hex(32))
    assert made.group.slots.hall is not None, "instances join"
    port = made.group.slots.hall.port
    liar = made.network.worker(port, wrong_key, far=True, folder=Path(made.order.folder), once=True)
    doors = [(NEAR, port)]
    for slot in made.group.slots.all:
        host, _, number = slot.member.address.removeprefix("tcp:").rpartition(":")
        doors.append((host, int(number)))
    for place in doors:
        for noise in (b"GET / HTTP/1.1\r\nHost: headrace\r\n\r\n" * 9, os.urandom(4096)):
            with suppress(ConnectionError), socket.create_connection(place, 10) as visitor:
                visitor.sendall(noise)
                while visitor.recv(1 << 16):
                    pass
    if liar.wait() == 0 or "is the key the same" not in made.network.said(liar):
        raise RuntimeError(f"a worker with a wrong key was not turned away: {made.network.said(liar)[-500:]}")


async def partition(made: Cluster, report: Report) -> None:
    """The link is cut while requests run on both sides and move; they all go on here, and the far worker comes back."""
    asked = made.asked(4, 3 * made.order.output)
    expected = await made.alone(asked)
    streams = [made.submit(*one, tenant=f"cut {i}") for i, one in enumerate(asked)]
    heard = dict.fromkeys(range(len(streams)), time.monotonic())
    gaps = dict.fromkeys(heard, 0.0)

    def hears(i: int) -> None:
        now = time.monotonic()
        gaps[i], heard[i] = max(gaps[i], now - heard[i]), now

    reading = [asyncio.create_task(collect(stream, lambda i=i: hears(i))) for i, stream in enumerate(streams)]  # type: ignore[misc]
    wanderers = [asyncio.create_task(made.wander(stream)) for stream in streams[:2]]
    far = next(slot.number for slot in made.group.slots.all if NEAR not in slot.member.address)
    while not any(_at(made, stream, far) for stream in streams[2:]):  # one that stays is over there
        for stream in streams[2:]:
            if _at(made, stream, 1 - far):
                await made.group.balancing.move(stream.request_id, far)
                break
        await asyncio.sleep(_PAUSE)
    replays = made.group.replays
    made.network.cut()
    report.cut_same = share_alike(expected, await asyncio.gather(*reading))
    report.cut_lost = made.group.replays - replays
    report.gap_seconds = max(gaps.values())
    await asyncio.gather(*wanderers)
    made.network.heal()
    healed = time.monotonic()
    await made.both_serve()
    report.back_seconds = time.monotonic() - healed
    report.healed_same, report.healed_moves = await made.moved(3, made.order.output, "healed ")


def _at(made: Cluster, stream: RequestStream, number: int) -> bool:
    owned = made.group.owned(stream.request_id)
    if owned is None:
        raise RuntimeError("requests ended before the link could be cut")
    return owned.holder is not None and not owned.move and owned.holder.number == number


async def work(order: Order) -> Report:
    """Every part in turn."""
    report = Report()
    print("@ two machines and a worker with another model", flush=True)
    async with cluster(order, report) as made:
        print("@ requests moved between the machines", flush=True)
        report.moved_same, report.moves = await made.moved(order.requests, order.output, "moved ")
        report.pages = made.group.relocation.counts.pages
        print("@ a conversation that goes to and fro", flush=True)
        await talk(made, report)
        print("@ strangers, wrong keys, broken records", flush=True)
        await doors(made, report)
        print("@ the link is cut, and healed", flush=True)
        await partition(made, report)
    return report


def _watch() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def main(path: str) -> None:
    """Read the order, print the report. Everything ends when whoever started this does."""
    threading.Thread(target=_watch, daemon=True).start()
    order = Order(**json.loads(Path(path).read_text(encoding="utf-8")))
    print(json.dumps(dataclasses.asdict(asyncio.run(asyncio.wait_for(work(order), _LONGEST_SECONDS)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
