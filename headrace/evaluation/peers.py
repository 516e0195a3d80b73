"""Beside other servers: the same load on the same model file, in turns, in one run."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.evaluation.load import LoadRun, LoadSettings
from headrace.evaluation.load_report import LoadReport, report
from headrace.settings.declaration import option, validate

_START_SECONDS = 120.0
_SCHEMES = ("http://", "https://")
_HOST = Path(__file__).with_name("peer_host.py")


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Who is measured and with what.

    A peer is ``NAME=WHERE``: a URL that already serves the model, a ``llama-server`` binary, or the Python of a virtual
    environment with the package ``xllamacpp`` in it. Nothing is installed.
    """

    peer: tuple[str, ...] = option((), help="NAME=WHERE: a URL, a llama-server binary, or a Python that has xllamacpp. Repeatable.")
    model: str = option("smollm2", help="Model that headrace and the started peers serve.")
    threads: int = option(2, minimum=1, maximum=256, help="Compute threads of each.")
    streams: tuple[int, ...] = option((1, 8, 32), unit="streams", minimum=1, maximum=1024, help="Clients of each load. Repeatable.")
    prompt: int = option(128, unit="tokens", minimum=1, maximum=100_000, help="Length of each prompt.")
    output: int = option(128, unit="tokens", minimum=2, maximum=100_000, help="Length of each output.")
    long_prompt: int = option(512, unit="tokens", minimum=16, maximum=100_000, help="Prompt of the prefill measurement.")
    rounds: int = option(3, minimum=1, maximum=100, help="Runs of each measurement, in turns.")

    def __post_init__(self) -> None:
        validate(self)
        for peer in self.peer:
            if not all(peer.partition("=")):
                raise HeadraceError("invalid_setting", f"peer must be NAME=WHERE, not '{peer}'", param="peer")


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing measured of every server: ``values`` by server, one a round, in ``unit``."""

    what: str
    unit: str
    values: dict[str, list[float]]

    def median(self, server: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.values[server])

    def ratio(self, server: str, to: str) -> float:
        """Median of the ratios round by round: a machine that drifts moves both."""
        return statistics.median(a / b for a, b in zip(self.values[server], self.values[to], strict=True))


Progress = Callable[[str, int, int], None]


def compare(settings: PeerSettings, model_file: Path, progress: Progress) -> list[Measure]:
    """Start headrace and the peers, load them in turns, and stop them. Raises ``invalid_setting`` for one that won't start."""
    named = [peer.partition("=")[::2] for peer in settings.peer]
    for name, where in named:
        if not where.startswith(_SCHEMES) and not Path(where).is_file():
            raise HeadraceError("invalid_setting", f"peer {name}: no such file and no URL: '{where}'", param="peer")
    with contextlib.ExitStack() as stack:
        urls = {"headrace": stack.enter_context(_headrace(settings))}
        for name, where in named:
            urls[name] = stack.enter_context(_peer(where, settings, model_file))
        return _measure_all(settings, urls, progress)


def _measure_all(settings: PeerSettings, urls: dict[str, str], progress: Progress) -> list[Measure]:
    loads = [
        (f"{clients} stream{'s' * (clients > 1)}", "output tok/s", _streams(settings, clients)) for clients in settings.streams
    ]
    loads.append((f"prefill of {settings.long_prompt}", "prompt tok/s", _prefill(settings)))
    measures = [Measure(what, unit, {name: [] for name in urls}) for what, unit, _ in loads]
    done, total = 0, len(loads) * len(urls) * settings.rounds
    for number in range(settings.rounds):
        for measure, (what, _, load) in zip(measures, loads, strict=True):
            for name in urls if number % 2 == 0 else reversed(list(urls)):
                progress(f"{name}: {what}", done, total)
                measure.values[name].append(load(urls[name], number))
                done += 1
    return measures


def _streams(settings: PeerSettings, clients: int) -> Callable[[str, int], float]:
    """Tokens/s: of one stream after its first token, of many over the whole run, prompts included."""

    def load(url: str, seed: int) -> float:
        found = _run(url, seed, max(2, clients), clients, (settings.prompt, settings.output))
        return found.stream_rate.p50 if clients == 1 else found.output_rate

    return load


def _prefill(settings: PeerSettings) -> Callable[[str, int], float]:
    def load(url: str, seed: int) -> float:
        found = _run(url, seed, 3, 1, (settings.long_prompt, 2))
        return found.prompt_rate * found.seconds / found.finished / (found.first_token.p50 / 1000)

    return load


def _run(url: str, seed: int, count: int, clients: int, lengths: tuple[int, int]) -> LoadReport:
    settings = LoadSettings(
        url=url, endpoint="completions", requests=count, concurrency=clients, seed=seed, ignore_eos=True,
        prompt=f"fixed:{lengths[0]}", output=f"fixed:{lengths[1]}",
    )  # fmt: skip
    found = report(asyncio.run(LoadRun(settings).run()))
    if found.finished < found.requests:
        raise HeadraceError("invalid_setting", f"{url} failed {found.failures} of {found.requests} requests", param="peer")
    return found


@contextlib.contextmanager
def _headrace(settings: PeerSettings) -> Iterator[str]:
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "headrace",
        "serve",
        "--port",
        str(port),
        "--model",
        settings.model,
        "--threads",
        str(settings.threads),
    ]
    with _process(command) as process:
        yield _ready(process, f"http://127.0.0.1:{port}", "readyz")


@contextlib.contextmanager
def _peer(where: str, settings: PeerSettings, model_file: Path) -> Iterator[str]:
    if where.startswith(_SCHEMES):
        yield where
        return
    most, context = max(settings.streams), max(settings.prompt + settings.output, settings.long_prompt) * 5 // 4 + 64
    if Path(where).name.startswith("python"):
        command = [where, str(_HOST), str(model_file), str(settings.threads), str(most), str(context)]
        with _process(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            yield _ready(process, url, "health")
        return
    port = _free_port()
    command = [where, "-m", str(model_file), "-t", str(settings.threads), "-np", str(most), "-c", str(context * most)]
    command += ["--port", str(port), "--no-cache-prompt", "-fa", "off"]
    with _process(command) as process:
        yield _ready(process, f"http://127.0.0.1:{port}", "health")


@contextlib.contextmanager
def _process(command: Sequence[str], stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], url: str, path: str) -> str:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise HeadraceError("invalid_setting", f"{process.args!r} ended with exit code {process.returncode}", param="peer")
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(f"{url}/{path}", timeout=2) as answer:
            if answer.status == 200:
                return url
        time.sleep(0.1)
    raise HeadraceError("invalid_setting", f"{process.args!r} was not ready after {_START_SECONDS:.0f} s", param="peer")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
