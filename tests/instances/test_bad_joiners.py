"""Who comes to the doors of a server of several machines and does not belong: refused, counted, logged once, told why."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from headrace import __version__
from headrace.engine import joining as worker
from headrace.engine import page_channel
from headrace.engine.identity import REASONS, identity_here
from headrace.engine.joining import greet
from headrace.engine.page_channel import PageListener, PageSender
from headrace.engine.page_socket import PageSeal
from headrace.engine.relocation_wire import Dismissed, WorkerRole
from headrace.engine.sealing import Opener, Seal
from headrace.engine.settings import EngineSettings
from headrace.engine.transport import Inbound, Outbound, encode_frame
from headrace.engine.wire import Failed, Ready, Start
from headrace.errors import HeadraceError
from headrace.instances import hall as hall_module
from headrace.instances.group import GroupOptions, InstanceGroup
from headrace.instances.hall import Hall
from headrace.instances.hall_key import KEY_VARIABLE
from headrace.kernels.interface import Bytes
from headrace.placement.joining import Joining

KEY = b"0123456789abcdef0123456789abcdef"
PAGE = 64


class Worker:
    """A worker whose engine says what a test wants."""

    def __init__(self, port: int) -> None:
        keys = None
        while keys is None:
            self.socket = socket.create_connection(("127.0.0.1", port), 10)
            try:
                keys = greet(self.socket, KEY, 7)
            except HeadraceError as error:  # its place is not free yet: it tries again, as workers do
                if error.code != "state_conflict":
                    raise
                self.socket.close()
                time.sleep(0.01)
        self.seal, self._opener, self._inbound = Seal(keys.to_api), Opener(keys.to_engine), Inbound()

    def hears(self) -> object:
        """The next message; ``None`` at the end."""
        while data := self.socket.recv(1 << 16):
            messages = self._inbound.feed(self._opener.feed(data))
            if messages:
                return messages[0]
        return None

    def says(self, message: Ready | Failed) -> bytes:
        """Send a message; the record that it was in."""
        record = self.seal.close(encode_frame(message))
        self.socket.sendall(record)
        return record


def ready(identity: str) -> Ready:
    return Ready("m", 64, 100, 8, 10, 16, 0.0, identity)


@asynccontextmanager
async def waiting_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch, instances: int = 1
) -> AsyncIterator[tuple[InstanceGroup, Hall]]:
    (folder / "key").write_bytes(KEY)
    monkeypatch.setenv(KEY_VARIABLE, str(folder / "key"))
    joining = Joining(instances, "127.0.0.1", 0)
    made = InstanceGroup(GroupOptions(instances, round_seconds=0.0, restart_seconds=0.01, joining=joining))
    await made.launch(EngineSettings())
    assert made.slots.hall is not None
    try:
        yield made, made.slots.hall
    finally:
        await made.stop()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


@pytest.mark.model
def test_a_worker_with_something_else_is_told_and_the_next_one_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = identity_here(EngineSettings())
    changed = ("files", "model", "kv", "weights", "version")

    async def work() -> None:
        async with waiting_group(tmp_path, monkeypatch) as (made, hall):
            starting = asyncio.create_task(made.started())
            for name in changed:
                other = await asyncio.to_thread(Worker, hall.port)
                assert isinstance(await asyncio.to_thread(other.hears), Start)
                other.says(ready(json.dumps({**json.loads(mine), name: "another"})))
                told = await asyncio.to_thread(other.hears)
                assert isinstance(told, Dismissed)
                assert told.message.startswith(f"its {REASONS[name][1]} is another, the server's is ")
                other.socket.close()
            broken = await asyncio.to_thread(Worker, hall.port)
            broken.says(Failed("model_not_found", "no model is called so"))
            await until(lambda: hall.refusals["load"] == 1)
            broken.socket.close()
            assert not starting.done(), "it goes on waiting"
            right = await asyncio.to_thread(Worker, hall.port)
            await asyncio.to_thread(right.hears)
            right.says(ready(mine))
            assert (await starting).identity == mine
            counts = {"model": 2, "pages": 1, "weights": 1, "version": 1, "load": 1}
            assert made.refusals() == {("join", reason): count for reason, count in counts.items()}
            right.socket.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    lines = [record.message for record in caplog.records if "was refused" in record.message]
    assert len(lines) == 5, "one a reason"
    assert all("127.0.0.1" in line for line in lines)


@pytest.mark.model
def test_records_that_were_not_sealed_so_end_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed, changed, left out: each ends it before or behind what has been loaded, and the place is free again."""
    mine = identity_here(EngineSettings())

    async def work() -> None:
        async with waiting_group(tmp_path, monkeypatch) as (made, hall):
            starting = asyncio.create_task(made.started())
            for number, fault in enumerate(("changed", "left out", "replayed"), 1):
                other = await asyncio.to_thread(Worker, hall.port)
                await asyncio.to_thread(other.hears)
                if fault == "changed":
                    record = bytearray(other.seal.close(encode_frame(ready(mine))))
                    record[-3] ^= 1
                    other.socket.sendall(record)
                elif fault == "left out":
                    other.seal.close(b"this one is lost")
                    other.says(ready(mine))
                else:
                    again = other.says(ready(mine))
                    await starting
                    other.socket.sendall(again)
                assert await asyncio.to_thread(other.hears) is None, "the connection is closed"
                other.socket.close()
                await until(lambda number=number: hall.refusals["broken"] == number)  # type: ignore[misc]
            await until(lambda: made.slots[0].state in ("waiting", "loading"))
            healed = await asyncio.to_thread(Worker, hall.port)
            await asyncio.to_thread(healed.hears)
            healed.says(ready(mine))
            await until(lambda: made.slots[0].state == "serving")
            healed.socket.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_real_worker_ends_with_what_it_was_told() -> None:
    """The worker's side of a dismissal, with the engine process it started; what it is there for it says first."""

    async def work() -> None:
        hall = Hall(Joining(1, "127.0.0.1", 0), KEY)
        await hall.open()
        try:
            awaited = asyncio.create_task(hall.next())
            await asyncio.sleep(0)
            joined = asyncio.create_task(asyncio.to_thread(worker.join, ("127.0.0.1", hall.port), KEY, None, "decode"))
            joiner = await awaited
            opener, messages = Opener(joiner.keys.to_api), Outbound()
            assert messages.feed(opener.feed(await joiner.reader.read(1 << 16))) == [WorkerRole("decode")]
            joiner.writer.write(Seal(joiner.keys.to_engine).close(encode_frame(Dismissed("model_file", "its files are others"))))
            with pytest.raises(HeadraceError, match="refuses this instance: its files are others") as told:
                await joined
            assert worker.is_final(told.value)
            joiner.writer.close()
        finally:
            hall.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_strangers_where_instances_join(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(hall_module, "GREETING_SECONDS", 0.3)
    monkeypatch.setattr(hall_module, "MOST_GREETINGS", 3)

    async def work() -> None:
        hall = Hall(Joining(1, "127.0.0.1", 0), KEY)
        await hall.open()
        where = "127.0.0.1", hall.port
        try:
            for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9, bytes(range(256))):
                reader, writer = await asyncio.open_connection(*where)
                writer.write(noise)
                assert len(await reader.read()) == 40, "it says its nonce and nothing else"
                writer.close()
            silent = [await asyncio.open_connection(*where) for _ in range(4)]
            await until(lambda: hall.refusals["silent"] == 3 and hall.refusals["crowd"] == 1)
            for _, writer in silent:
                writer.close()
            with pytest.raises(HeadraceError, match="is the key the same"):
                await asyncio.to_thread(worker.join, where, b"another key of enough bytes")
            with pytest.raises(HeadraceError, match="all of its places are taken") as told:
                await asyncio.to_thread(worker.join, where, KEY)
            assert not worker.is_final(told.value)
            monkeypatch.setattr(worker, "__version__", __version__ + "x")
            with pytest.raises(HeadraceError, match="another version") as told:
                await asyncio.to_thread(worker.join, where, KEY)
            assert worker.is_final(told.value)
            await until(lambda: hall.refusals.counts == {"stranger": 3, "silent": 3, "crowd": 1, "full": 1, "version": 1})
        finally:
            hall.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    lines = [record.message for record in caplog.records if "was refused" in record.message]
    assert len(lines) == 5, "one a reason"


class Pages:
    """Where pages go that were expected."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.problem: str | None = None

    def put(self, number: int, page: Bytes) -> bool:
        self.got.append(number)
        return True

    def fail(self, problem: str) -> None:
        self.problem = problem


def checksum(page: Bytes) -> int:
    return int(page.astype(np.uint64).sum())


@pytest.fixture
def page_port(monkeypatch: pytest.MonkeyPatch) -> tuple[PageListener, Pages, str]:
    """A listener on TCP that expects move 1."""
    monkeypatch.setattr(page_channel, "SECONDS", 0.4)
    sock = socket.create_server(("127.0.0.1", 0))
    address = f"tcp:127.0.0.1:{sock.getsockname()[1]}"
    listener = PageListener(f"fd={sock.detach()}", KEY, PAGE, "the same")
    landing = Pages()
    listener.start(lambda move: landing if move == 1 else None, checksum)
    return listener, landing, address


def wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends, "it does not come"
        time.sleep(0.005)


def test_strangers_where_pages_come_in(page_port: tuple[PageListener, Pages, str], caplog: pytest.LogCaptureFixture) -> None:
    listener, landing, address = page_port
    host, port = "127.0.0.1", int(address.rpartition(":")[2])
    try:
        for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9, bytes(256)):
            with socket.create_connection((host, port)) as stranger:
                stranger.sendall(noise)
                wait_until(lambda: _read(stranger) == b"")
        with socket.create_connection((host, port)) as silent:
            wait_until(lambda: _read(silent) == b"")
        pages = np.zeros((2, PAGE), np.uint8)
        for move, key, identity in ((1, b"x" * 32, "the same"), (1, KEY, "another"), (2, KEY, "the same")):
            sender = PageSender((address, move), (key, identity), pages, checksum)
            wait_until(lambda sender=sender: sender.problem is not None)  # type: ignore[misc]
            sender.abort()
        wait_until(lambda: listener.refusals.total == 6)
        assert listener.refusals.counts == {"stranger": 3, "silent": 1, "model": 1, "unexpected": 1}
        assert (landing.got, landing.problem) == ([], None), "whoever is expected may still come"
        sender = PageSender((address, 1), (KEY, "the same"), pages, checksum)
        sender.send([(0, 0), (1, 1)])
        wait_until(lambda: landing.got == [0, 1])
        sender.finish()
    finally:
        listener.close()
    assert sum("was refused" in record.message for record in caplog.records) == 4


@pytest.mark.parametrize("fault", ["replayed", "changed", "forged", "cut short", "foreign"])
def test_frames_that_were_not_sealed_so_end_the_move(
    fault: str, page_port: tuple[PageListener, Pages, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, landing, address = page_port
    frames: list[bytes] = []

    def send(self: PageSender, number: int, page: int) -> None:
        data = np.full(PAGE, number, np.uint8)
        head = struct.pack("<IIQ", number, PAGE, checksum(data))
        assert self._seal is not None
        seal = PageSeal(b"guessed").next(head, data) if fault == "forged" and number else self._seal.next(head, data)
        frame = head + data.tobytes() + seal
        frames.append(frame)
        if number and fault == "replayed":
            frame = frames[0]
        elif number and fault == "changed":  # with a checksum that is right
            data[0] += 1
            frame = struct.pack("<IIQ", number, PAGE, checksum(data)) + data.tobytes() + frame[-32:]
        elif number and fault == "cut short":
            frame = frame[:50]
        elif number and fault == "foreign":
            frame = b"GET / HTTP/1.1\r\n\r\n"
        self._socket.sendall(frame)

    monkeypatch.setattr(PageSender, "_send_page", send)
    try:
        sender = PageSender((address, 1), (KEY, "the same"), np.zeros((2, PAGE), np.uint8), checksum)
        sender.send([(0, 0), (1, 1)])
        sender.finish()
        wait_until(lambda: landing.problem is not None)
        assert landing.got == [0]
        assert listener.refusals.counts == {"broken": 1}
    finally:
        listener.close()


def test_a_crowd_where_pages_come_in_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_channel, "MOST_GREETINGS", 2)
    sock = socket.create_server(("127.0.0.1", 0))
    where = sock.getsockname()
    before = threading.active_count()
    listener = PageListener(f"fd={sock.detach()}", KEY, PAGE, "the same")
    listener.start(lambda move: None, checksum)
    crowd = [socket.create_connection(where) for _ in range(6)]
    try:
        wait_until(lambda: listener.refusals["crowd"] == 4)
        assert threading.active_count() <= before + 3
    finally:
        for one in crowd:
            one.close()
        listener.close()


def _read(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionResetError:
        return b""
