"""Two machines on one: a network namespace each and a link between them that can be cut, workers in both, bytes that change."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from headrace.errors import HeadraceError

NEAR, FAR = "10.77.0.1", "10.77.0.2"
_TOOLS = ("unshare", "nsenter", "ip")
_NEEDED = "two machines are made of network namespaces"


def namespace_command() -> list[str]:
    """What runs a command in a network of its own, as root of it. Raises ``unsupported_machine`` where that can't be."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise HeadraceError("unsupported_machine", f"{_NEEDED}: install {', '.join(missing)} (util-linux, iproute2)")
    command = ["unshare", "--net", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    trial = "ip link set lo up && ip link add x type veth peer name y"
    done = subprocess.run([*command, "sh", "-c", trial], capture_output=True, timeout=30, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        message = f"{_NEEDED}, which this system does not allow ({said}); as root it may, or with unprivileged user namespaces"
        raise HeadraceError("unsupported_machine", message)
    return command


def worker_command(address: str, key: Path) -> list[str]:
    """``headrace instance`` with one thread, for the server that takes instances at this HOST:PORT."""
    return [sys.executable, "-m", "headrace", "instance", "--join", address, "--key-file", str(key), "--threads", "1"]


class Network:
    """This process's namespace, which must be its own already, and a far one; a link between both."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []
        self._logs: list[BinaryIO] = []
        ours = os.readlink("/proc/self/ns/net")
        self._far = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        place = f"/proc/{self._far.pid}/ns/net"
        until = time.monotonic() + 10
        while os.readlink(place) == ours and time.monotonic() < until:
            time.sleep(0.01)
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(self._far.pid))
        run("ip", "address", "add", f"{NEAR}/24", "dev", "near")
        run("ip", "link", "set", "near", "up")
        for words in (("set", "lo", "up"), ("set", "far", "up")):
            run(*self._there, "ip", "link", *words)
        run(*self._there, "ip", "address", "add", f"{FAR}/24", "dev", "far")

    @property
    def _there(self) -> tuple[str, ...]:
        return "nsenter", f"--net=/proc/{self._far.pid}/ns/net"

    def cut(self) -> None:
        """Nothing passes between the machines from now on; neither side is told."""
        run("ip", "link", "set", "near", "down")

    def heal(self) -> None:
        """Packets pass again."""
        run("ip", "link", "set", "near", "up")

    def worker(
        self, port: int, key: Path, *, far: bool, folder: Path, once: bool = False, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``headrace instance`` with one thread; ``folder``: where it looks for the model."""
        command = worker_command(f"{NEAR}:{port}", key)
        log = (self._folder / f"worker-{len(self._workers)}.log").open("w+b")
        self._logs.append(log)
        process = subprocess.Popen(
            [*(self._there if far else ()), *command, *(["--once"] if once else [])],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self._workers.append(process)
        return process

    def said(self, worker: subprocess.Popen[bytes]) -> str:
        """What a worker has printed so far."""
        path = self._folder / f"worker-{self._workers.index(worker)}.log"
        return path.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._workers:
            process.kill()
            process.wait()
        for log in self._logs:
            log.close()
        if self._far.stdin is not None:
            self._far.stdin.close()
        self._far.wait(10)


def run(*command: str) -> None:
    """A command of the system. Raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()[-300:]}")


class Meddler:
    """Stands between a worker and the server, passes everything on, and once it is told to, something else.

    ``fault``: of the next bytes in this direction: ``replayed`` (sent twice), ``changed`` (one bit), ``left out``.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._fault: tuple[str, bool] | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on a port of its own."""
        self._server = await asyncio.start_server(self._come, NEAR, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Pass nothing more."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    def meddle(self, fault: str, *, to_server: bool) -> None:
        """Do this once, with the next bytes that way."""
        self._fault = fault, to_server

    @property
    def done(self) -> bool:
        """True when nothing is left to be done."""
        return self._fault is None

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection has a task"
        self._tasks.add(task)
        try:
            target, onward = await asyncio.open_connection(NEAR, self._target)
            await asyncio.gather(self._pass(reader, onward, to_server=True), self._pass(target, writer, to_server=False))
        except OSError:
            writer.close()
        finally:
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(self._changed(data, to_server=to_server))
                await writer.drain()
        writer.close()

    def _changed(self, data: bytes, *, to_server: bool) -> bytes:
        if self._fault is None or self._fault[1] != to_server:
            return data
        fault, self._fault = self._fault[0], None
        if fault == "replayed":
            return data + data
        if fault == "left out":
            return data[: len(data) // 2]
        return data[:-1] + bytes([data[-1] ^ 1])
